//! Cuts what a client sends into JSON messages: by counting braces, not by lines, since clients may
//! send two commands in one breath, one in many, and no newline at all.

/// Longest message, in bytes.
pub(super) const MAX_MESSAGE: usize = 1 << 20;
/// Deepest nesting of braces and brackets.
pub(super) const MAX_DEPTH: i32 = 256;

/// What came out of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// One JSON value, or what its braces make look like one.
    Message(Vec<u8>),
    /// Bytes that cannot be in JSON; the stream goes on behind them.
    Error(String),
    /// A message longer than [`MAX_MESSAGE`]: nothing more comes.
    TooLong,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between tokens.
    Plain,
    /// In a keyword or number.
    Word,
    /// In a string that ends with this quote.
    String(u8),
    /// Behind a backslash in a string that ends with this quote.
    Escape(u8),
    /// Behind an error: on the way to a byte that can start something new.
    Recovery,
}

/// One client's stream.
#[derive(Debug)]
pub(super) struct Splitter {
    state: State,
    braces: i32,
    brackets: i32,
    message: Vec<u8>,
    ended: bool,
}

impl Splitter {
    /// A stream with nothing in it.
    pub fn new() -> Splitter {
        Splitter { state: State::Plain, braces: 0, brackets: 0, message: Vec::new(), ended: false }
    }

    /// Takes bytes in, gives what is complete to `out`.
    pub fn feed(&mut self, bytes: &[u8], out: &mut impl FnMut(Item)) {
        for byte in bytes {
            if self.ended {
                return;
            }
            self.byte(*byte, out);
            if self.message.len() > MAX_MESSAGE {
                self.ended = true;
                self.message = Vec::new();
                out(Item::TooLong);
            }
        }
    }

    fn byte(&mut self, byte: u8, out: &mut impl FnMut(Item)) {
        match self.state {
            State::String(_) | State::Escape(_) if !(0x20..0xfe).contains(&byte) => self.stray(byte, out),
            State::String(quote) => {
                self.message.push(byte);
                if byte == quote {
                    self.state = State::Plain;
                    self.token_end(out);
                } else if byte == b'\\' {
                    self.state = State::Escape(quote);
                }
            }
            State::Escape(quote) => {
                self.message.push(byte);
                self.state = State::String(quote);
            }
            State::Recovery if !is_landmark(byte) => {}
            State::Plain | State::Word | State::Recovery => self.plain(byte, out),
        }
    }

    /// A byte outside of strings.
    fn plain(&mut self, byte: u8, out: &mut impl FnMut(Item)) {
        let is_word = matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'+' | b'.' | b'E');
        if self.state == State::Word && !is_word {
            self.state = State::Plain;
            self.token_end(out);
        }
        match byte {
            b'{' => self.braces = self.braces.saturating_add(1),
            b'}' => self.braces = self.braces.saturating_sub(1),
            b'[' => self.brackets = self.brackets.saturating_add(1),
            b']' => self.brackets = self.brackets.saturating_sub(1),
            b',' | b':' => {}
            b' ' | b'\t' | b'\r' | b'\n' => {
                self.state = State::Plain;
                // It separates tokens; one is as good as many.
                if !self.message.is_empty() && self.message.last() != Some(&b' ') {
                    self.message.push(b' ');
                }
                return;
            }
            b'"' | b'\'' => {
                self.state = State::String(byte);
                self.message.push(byte);
                return;
            }
            _ if is_word => {
                self.state = State::Word;
                self.message.push(byte);
                return;
            }
            _ => return self.stray(byte, out),
        }
        self.state = State::Plain;
        self.message.push(byte);
        if self.braces.saturating_add(self.brackets) > MAX_DEPTH {
            self.reset();
            self.state = State::Recovery;
            return out(Item::Error("JSON nesting depth limit exceeded".to_owned()));
        }
        self.token_end(out);
    }

    /// Gives the message away if it ends with the token that just ended.
    fn token_end(&mut self, out: &mut impl FnMut(Item)) {
        let open = self.braces > 0 || self.brackets > 0;
        if open && self.braces >= 0 && self.brackets >= 0 {
            return;
        }
        let message = std::mem::take(&mut self.message);
        self.reset();
        out(Item::Message(message));
    }

    fn stray(&mut self, byte: u8, out: &mut impl FnMut(Item)) {
        self.reset();
        // A control character is a place to start anew itself.
        self.state = if is_landmark(byte) { State::Plain } else { State::Recovery };
        let shown = match byte {
            0x21..=0x7e => char::from(byte).to_string(),
            0x80.. => "\\uFFFD".to_owned(),
            _ => format!("\\u{byte:04X}"),
        };
        out(Item::Error(format!("JSON parse error, stray '{shown}'")));
    }

    fn reset(&mut self) {
        self.message.clear();
        self.state = State::Plain;
        self.braces = 0;
        self.brackets = 0;
    }
}

/// Whether something new may start at this byte, behind an error.
fn is_landmark(byte: u8) -> bool {
    matches!(byte, b'{' | b'}' | b'[' | b']' | b',' | b':') || (byte < 0x20 && byte != b'\t') || byte >= 0xfe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(bytes: &[u8]) -> Vec<String> {
        let mut items = Vec::new();
        Splitter::new().feed(bytes, &mut |item| items.push(item));
        items
            .into_iter()
            .map(|item| match item {
                Item::Message(bytes) => String::from_utf8(bytes).unwrap(),
                Item::Error(text) => format!("!{text}"),
                Item::TooLong => "too long".to_owned(),
            })
            .collect()
    }

    #[test]
    fn messages() {
        for (input, expected) in [
            (r#"{"a":1}{"b":[{}]}"#, vec![r#"{"a":1}"#, r#"{"b":[{}]}"#]),
            ("{\"a\":\r\n\t 1}\r\n", vec![r#"{"a": 1}"#]),
            (r#"{"a":"}\"{"} "#, vec![r#"{"a":"}\"{"}"#]),
            ("{'a':'\"}'}", vec!["{'a':'\"}'}"]),
            ("3", vec![]),
            ("3 ", vec!["3"]),
            ("null\"x\"", vec!["null", "\"x\""]),
            ("bad{}", vec!["bad", "{}"]),
            ("}]", vec!["}", "]"]),
            ("[1,2}{}", vec!["[1,2}", "{}"]),
            (",:", vec![",", ":"]),
            (r#"{"a":1"#, vec![]),
        ] {
            assert_eq!(split(input.as_bytes()), expected, "{input}");
        }
    }

    #[test]
    fn the_stream_goes_on_behind_garbage() {
        assert_eq!(split(b"\xff{}"), ["!JSON parse error, stray '\\uFFFD'", "{}"]);
        assert_eq!(
            split(b"{\"a\":\"\x01\"}\n{}"),
            [
                "!JSON parse error, stray '\\u0001'".to_owned(),
                // What was behind the bad byte, up to the next one where things can start.
                "!JSON parse error, stray '\\u000A'".to_owned(),
                "{}".to_owned(),
            ]
        );
        assert_eq!(split(b"HELO x {}"), ["!JSON parse error, stray 'H'", "{}"]);
    }

    #[test]
    fn limits() {
        let deep = "[".repeat(usize::try_from(MAX_DEPTH).unwrap() + 1);
        assert_eq!(split(deep.as_bytes()), ["!JSON nesting depth limit exceeded"]);
        let long = format!("\"{}", "x".repeat(MAX_MESSAGE));
        assert_eq!(split(long.as_bytes()), ["too long"]);
        // White space is not kept.
        assert_eq!(split(" ".repeat(2 * MAX_MESSAGE).as_bytes()), [""; 0]);
        assert_eq!(split(format!("[{}]", " ".repeat(2 * MAX_MESSAGE)).as_bytes()), ["[ ]"]);
    }
}
