//! Reads one JSON message with QEMU's dialect (strings may have single quotes) and QEMU's complaints,
//! and writes JSON as QEMU spaces it.

use std::io;

use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::{Map, Number, Value};

/// Reads one message that the splitter cut out.
pub(super) fn parse(message: &[u8]) -> Result<Value, String> {
    let mut parser = Parser { rest: message };
    parser.value().map_err(|what| format!("JSON parse error, {what}"))
}

/// Writes a message, `pretty` for people, without the end of the line.
pub(super) fn write(value: &Value, pretty: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let written = if pretty {
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))
    } else {
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Spaced))
    };
    // Writing a value into memory has nothing that can fail.
    debug_assert!(written.is_ok());
    bytes
}

/// `{"a": 1, "b": [2, 3]}`.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// A reader of one message. Its recursion is as deep as the splitter lets messages be nested.
struct Parser<'a> {
    rest: &'a [u8],
}

impl Parser<'_> {
    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        while let [b' ' | b'\t' | b'\r' | b'\n', rest @ ..] = self.rest {
            self.rest = rest;
        }
        self.rest.first().copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        if let (true, [_, rest @ ..]) = (there, self.rest) {
            self.rest = rest;
        }
        there
    }

    fn value(&mut self) -> Result<Value, String> {
        match self.peek() {
            Some(b'{') => self.object(),
            Some(b'[') => self.array(),
            Some(quote @ (b'"' | b'\'')) => self.string(quote).map(Value::String),
            Some(b'a'..=b'z') => self.keyword(),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(_) => Err("expecting value".to_owned()),
            None => Err("premature EOI".to_owned()),
        }
    }

    fn object(&mut self) -> Result<Value, String> {
        self.eat(b'{');
        let mut members = Map::new();
        if self.eat(b'}') {
            return Ok(Value::Object(members));
        }
        loop {
            let Value::String(key) = self.value()? else {
                return Err("key is not a string in object".to_owned());
            };
            if !self.eat(b':') {
                return Err("missing : in object pair".to_owned());
            }
            let value = self.value()?;
            if members.insert(key, value).is_some() {
                return Err("duplicate key".to_owned());
            }
            if self.eat(b'}') {
                return Ok(Value::Object(members));
            }
            if !self.eat(b',') {
                return Err("expected separator in dict".to_owned());
            }
        }
    }

    fn array(&mut self) -> Result<Value, String> {
        self.eat(b'[');
        let mut items = Vec::new();
        if self.eat(b']') {
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value()?);
            if self.eat(b']') {
                return Ok(Value::Array(items));
            }
            if !self.eat(b',') {
                return Err("expected separator in list".to_owned());
            }
        }
    }

    /// Takes bytes as long as `is` says so.
    fn take_while(&mut self, is: impl Fn(u8) -> bool) -> &str {
        let end = self.rest.iter().position(|byte| !is(*byte)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        std::str::from_utf8(taken).unwrap_or_default()
    }

    fn keyword(&mut self) -> Result<Value, String> {
        match self.take_while(|byte| byte.is_ascii_lowercase()) {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            "null" => Ok(Value::Null),
            other => Err(format!("invalid keyword '{other}'")),
        }
    }

    fn number(&mut self) -> Result<Value, String> {
        let text = self.take_while(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'));
        // It has no letters but an exponent's, so infinity and not-a-number cannot be meant.
        text.parse::<Number>().map(Value::Number).map_err(|_| format!("invalid number '{text}'"))
    }

    fn string(&mut self, quote: u8) -> Result<String, String> {
        self.eat(quote);
        let mut bytes = Vec::new();
        loop {
            let Some((&byte, rest)) = self.rest.split_first() else {
                return Err("premature EOI".to_owned());
            };
            self.rest = rest;
            match byte {
                b'\\' => self.escape(&mut bytes)?,
                _ if byte == quote => break,
                _ => bytes.push(byte),
            }
        }
        String::from_utf8(bytes).map_err(|_| "invalid UTF-8 sequence in string".to_owned())
    }

    fn escape(&mut self, bytes: &mut Vec<u8>) -> Result<(), String> {
        let Some((&byte, rest)) = self.rest.split_first() else {
            return Err("premature EOI".to_owned());
        };
        self.rest = rest;
        let plain = match byte {
            b'"' | b'\'' | b'\\' | b'/' => byte,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let mut buffer = [0; 4];
                bytes.extend(self.unicode()?.encode_utf8(&mut buffer).as_bytes());
                return Ok(());
            }
            other => return Err(format!("invalid escape sequence '\\{}'", char::from(other))),
        };
        bytes.push(plain);
        Ok(())
    }

    /// What follows `\u`: four digits, and another escape if they are the first half of a pair.
    fn unicode(&mut self) -> Result<char, String> {
        let first = self.four_digits()?;
        if (0xd800..0xdc00).contains(&first)
            && let Some(rest) = self.rest.strip_prefix(b"\\u")
        {
            self.rest = rest;
            let second = self.four_digits()?;
            let joined = [u16::try_from(first), u16::try_from(second)].map(Result::unwrap_or_default);
            return match char::decode_utf16(joined).next() {
                Some(Ok(pair)) => Ok(pair),
                _ => Err(format!("\\u{first:04X}\\u{second:04X} is not a valid Unicode character")),
            };
        }
        match char::from_u32(first) {
            None | Some('\0') => Err(format!("\\u{first:04X} is not a valid Unicode character")),
            Some(character) => Ok(character),
        }
    }

    fn four_digits(&mut self) -> Result<u32, String> {
        let digits = self.rest.get(..4).unwrap_or(self.rest);
        let text = std::str::from_utf8(digits).unwrap_or_default();
        let number = u32::from_str_radix(text, 16).ok().filter(|_| text.len() == 4 && !text.starts_with('+'));
        let number = number.ok_or_else(|| format!("invalid hex escape sequence '\\u{text}'"))?;
        self.rest = self.rest.get(4..).unwrap_or_default();
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values() {
        for (text, value) in [
            ("{}", json!({})),
            (r#"{"a": [1, -2, 3.5, 1e2, true, null]}"#, json!({"a": [1, -2, 3.5, 100.0, true, null]})),
            ("{'a':'\"'}", json!({"a": "\""})),
            (r#""\u00e9\ud83d\ude00\n\/\'""#, json!("é😀\n/'")),
            ("18446744073709551615", json!(u64::MAX)),
        ] {
            assert_eq!(parse(text.as_bytes()), Ok(value), "{text}");
        }
    }

    #[test]
    fn complaints() {
        for (text, complaint) in [
            (r#"{"a":}"#, "expecting value"),
            (r#"{"execute" "x"}"#, "missing : in object pair"),
            (r#"{"a":1,}"#, "expecting value"),
            (r#"{"a":1 2}"#, "expected separator in dict"),
            ("{1:2}", "key is not a string in object"),
            ("[1,2}", "expected separator in list"),
            ("}", "expecting value"),
            (",", "expecting value"),
            ("nulltruebad", "invalid keyword 'nulltruebad'"),
            (r#"{"a":1,"a":2}"#, "duplicate key"),
            (r#""\x""#, "invalid escape sequence '\\x'"),
            (r#""\u12""#, "invalid hex escape sequence '\\u12\"'"),
            (r#""\ud800x""#, "\\uD800 is not a valid Unicode character"),
            ("1.2.3", "invalid number '1.2.3'"),
            ("\"\\", "premature EOI"),
        ] {
            assert_eq!(parse(text.as_bytes()), Err(format!("JSON parse error, {complaint}")), "{text}");
        }
        assert_eq!(parse(b"\"\x80\""), Err("JSON parse error, invalid UTF-8 sequence in string".to_owned()));
    }

    #[test]
    fn spacing() {
        let value = json!({"a": [1, 2], "b": {}, "c": "é"});
        assert_eq!(write(&value, false), r#"{"a": [1, 2], "b": {}, "c": "é"}"#.as_bytes());
        assert_eq!(write(&json!({"a": 1}), true), b"{\n    \"a\": 1\n}");
    }
}
