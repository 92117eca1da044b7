//! `key=value,…`: QEMU's two grammars for it, their JSON form, and typed access to what was read.

use serde_json::Value as Json;

use super::number;

/// Which of QEMU's grammars an option's argument follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grammar {
    /// A key without a value is a switch turned on, or off when it starts with `no`.
    Switches,
    /// Every key has a value. Dots in keys make a tree.
    Tree,
}

/// One value: text as typed, or JSON that is neither object nor null.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Json(Json),
}

/// An argument taken apart: what is known is taken out of it, and what then is left is wrong.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Pairs(Vec<(String, Value)>);

/// Reads `argument`. The first value may leave out its key, which is then `implied`.
pub(super) fn parse(argument: &str, grammar: Grammar, implied: Option<&str>) -> Result<Pairs, String> {
    match grammar {
        Grammar::Switches => Ok(parse_switches(argument, implied)),
        Grammar::Tree => parse_tree(argument, implied),
    }
}

/// As [`parse`], but an argument that starts with a brace is JSON, nested objects becoming dotted keys.
pub(super) fn parse_or_json(argument: &str, grammar: Grammar, implied: &str) -> Result<Pairs, String> {
    if !argument.starts_with('{') {
        return parse(argument, grammar, Some(implied));
    }
    let json: Json = serde_json::from_str(argument).map_err(|error| {
        if error.is_eof() {
            "JSON parse error, premature EOI".to_owned()
        } else {
            format!("JSON parse error, {error}")
        }
    })?;
    let mut pairs = Pairs::default();
    flatten(&json, "", &mut pairs);
    Ok(pairs)
}

fn flatten(json: &Json, prefix: &str, pairs: &mut Pairs) {
    match json {
        // serde_json bounds the depth of what it reads, so this recursion is bounded too.
        Json::Object(members) => {
            for (key, value) in members {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(value, &key, pairs);
            }
        }
        scalar => pairs.0.push((prefix.to_owned(), Value::Json(scalar.clone()))),
    }
}

fn parse_switches(argument: &str, implied: Option<&str>) -> Pairs {
    let mut pairs = Pairs::default();
    let mut rest = argument;
    let mut first = true;
    while !rest.is_empty() {
        let (name, tail) = split_key(rest);
        let (key, value);
        if let Some(after) = tail.strip_prefix('=') {
            key = name.to_owned();
            (value, rest) = unescape(after);
        } else if let (true, Some(implied)) = (first, implied) {
            key = implied.to_owned();
            (value, rest) = unescape(rest);
        } else {
            let (name, text) = match name.strip_prefix("no") {
                Some(name) => (name, "off"),
                None => (name, "on"),
            };
            (key, value) = (name.to_owned(), text.to_owned());
            rest = tail.strip_prefix(',').unwrap_or("");
        }
        pairs.0.push((key, Value::Text(value)));
        first = false;
    }
    pairs
}

fn parse_tree(argument: &str, implied: Option<&str>) -> Result<Pairs, String> {
    let mut pairs = Pairs::default();
    let mut rest = argument;
    let mut first = true;
    while !rest.is_empty() {
        let (name, tail) = split_key(rest);
        let (key, value);
        if let Some(after) = tail.strip_prefix('=') {
            key = name.to_owned();
            (value, rest) = unescape(after);
        } else if name.is_empty() {
            return Err("Invalid parameter ''".to_owned());
        } else if let (true, Some(implied)) = (first, implied) {
            (key, value) = (implied.to_owned(), name.to_owned());
            rest = tail.strip_prefix(',').unwrap_or("");
        } else {
            return Err(format!("Expected '=' after parameter '{name}'"));
        }
        if key.split('.').any(|part| part.is_empty()) {
            return Err(format!("Invalid parameter '{key}'"));
        }
        pairs.0.push((key, Value::Text(value)));
        first = false;
    }
    for (key, _) in &pairs.0 {
        let nested = |(other, _): &&(String, Value)| {
            other.strip_prefix(key.as_str()).is_some_and(|tail| tail.starts_with('.'))
        };
        if pairs.0.iter().find(nested).is_some() {
            return Err(format!("Parameters '{key}.*' used inconsistently"));
        }
    }
    Ok(pairs)
}

/// The key at the start of `text`, and what follows it: nothing, or `=` or `,` and more.
fn split_key(text: &str) -> (&str, &str) {
    let end = text.find(['=', ',']).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

/// The value at the start of `text`, where `,,` stands for a comma, and what follows its end.
fn unescape(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(',') {
        value.push_str(before);
        rest = after;
        match rest.strip_prefix(',') {
            Some(after) => {
                value.push(',');
                rest = after;
            }
            None => return (value, rest),
        }
    }
    value.push_str(rest);
    (value, "")
}

impl Pairs {
    /// Takes `key` out: its last value.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        let mut value = None;
        self.0.retain_mut(|(name, slot)| {
            let hit = name == key;
            if hit {
                value = Some(std::mem::replace(slot, Value::Text(String::new())));
            }
            !hit
        });
        value
    }

    /// Whether `key` is there.
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(name, _)| name == key)
    }

    /// The first key that nobody took.
    pub fn leftover(&self) -> Option<&str> {
        self.0.first().map(|(key, _)| key.as_str())
    }

    /// Complains about the first key that nobody took.
    pub fn finish(&self) -> Result<(), String> {
        self.leftover().map_or(Ok(()), |key| Err(format!("Invalid parameter '{key}'")))
    }

    /// All that is left, each key once with its last value, in the order in which keys first came.
    pub fn into_rest(mut self) -> Vec<(String, Value)> {
        let mut rest = Vec::new();
        while let Some(key) = self.leftover().map(str::to_owned) {
            if let Some(value) = self.take(&key) {
                rest.push((key, value));
            }
        }
        rest
    }

    /// Adds what `later` has: its keys win.
    pub fn merge(&mut self, later: Pairs) {
        self.0.extend(later.0);
    }

    /// Takes every pair whose key starts with `prefix`.
    pub fn take_under(&mut self, prefix: &str) -> Pairs {
        let (under, others) =
            std::mem::take(&mut self.0).into_iter().partition(|(key, _)| key.starts_with(prefix));
        self.0 = others;
        Pairs(under)
    }

    /// Takes a text.
    pub fn text(&mut self, key: &str) -> Result<Option<String>, String> {
        self.take(key).map(|value| value.text(key)).transpose()
    }

    /// Takes a switch.
    pub fn switch(&mut self, key: &str) -> Result<Option<bool>, String> {
        self.take(key).map(|value| value.switch(key)).transpose()
    }

    /// Takes a whole number; `expected` is what QEMU calls it in this place.
    pub fn unsigned(&mut self, key: &str, expected: &str) -> Result<Option<u64>, String> {
        self.take(key).map(|value| value.unsigned(key, expected)).transpose()
    }

    /// Takes a size in bytes; `expected` is what QEMU calls it in this place.
    pub fn size(&mut self, key: &str, expected: &str) -> Result<Option<u64>, String> {
        self.take(key).map(|value| value.size(key, expected)).transpose()
    }

    /// Takes one of several words.
    pub fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Result<Option<T>, String> {
        let Some(word) = self.text(key)? else { return Ok(None) };
        match choices.iter().find(|(name, _)| *name == word) {
            Some((_, choice)) => Ok(Some(*choice)),
            None => Err(format!("Parameter '{key}' does not accept value '{word}'")),
        }
    }

    /// Takes `id`, which must be there and be an identifier.
    pub fn id(&mut self) -> Result<String, String> {
        self.optional_id()?.ok_or_else(|| "Parameter 'id' is missing".to_owned())
    }

    /// Takes `id`, which must be an identifier if it is there.
    pub fn optional_id(&mut self) -> Result<Option<String>, String> {
        let Some(id) = self.text("id")? else { return Ok(None) };
        if number::is_identifier(&id) {
            return Ok(Some(id));
        }
        Err("Parameter 'id' expects an identifier\n\
             Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
            .to_owned())
    }
}

impl Value {
    pub fn text(self, key: &str) -> Result<String, String> {
        match self {
            Value::Text(text) | Value::Json(Json::String(text)) => Ok(text),
            Value::Json(_) => Err(format!("Invalid parameter type for '{key}', expected: string")),
        }
    }

    pub fn switch(self, key: &str) -> Result<bool, String> {
        match self {
            Value::Text(text) => {
                number::switch(&text).ok_or_else(|| format!("Parameter '{key}' expects 'on' or 'off'"))
            }
            Value::Json(Json::Bool(on)) => Ok(on),
            Value::Json(_) => Err(format!("Invalid parameter type for '{key}', expected: boolean")),
        }
    }

    pub fn unsigned(self, key: &str, expected: &str) -> Result<u64, String> {
        match self {
            Value::Text(text) => {
                number::unsigned(&text).ok_or_else(|| format!("Parameter '{key}' expects {expected}"))
            }
            Value::Json(json) => json.as_u64().ok_or_else(|| format!("Parameter '{key}' expects uint64")),
        }
    }

    pub fn size(self, key: &str, expected: &str) -> Result<u64, String> {
        match self {
            Value::Text(text) => {
                number::size(&text, 'B').map_err(|_| format!("Parameter '{key}' expects {expected}"))
            }
            Value::Json(json) => json.as_u64().ok_or_else(|| format!("Parameter '{key}' expects uint64")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(items: &[(&str, &str)]) -> Pairs {
        Pairs(
            items.iter().map(|(key, value)| ((*key).to_owned(), Value::Text((*value).to_owned()))).collect(),
        )
    }

    #[test]
    fn switches() {
        for (argument, expected) in [
            ("", vec![]),
            ("socket,id=a", vec![("type", "socket"), ("id", "a")]),
            ("a,,b", vec![("type", "a,b")]),
            ("a,,,id=x", vec![("type", "a,"), ("id", "x")]),
            ("x=1,y=a,,b,,,z=", vec![("x", "1"), ("y", "a,b,"), ("z", "")]),
            ("s,server,nowait", vec![("type", "s"), ("server", "on"), ("wait", "off")]),
            (",id=3", vec![("type", ""), ("id", "3")]),
            ("=1", vec![("", "1")]),
            ("a=b=c", vec![("a", "b=c")]),
            ("t,", vec![("type", "t")]),
        ] {
            assert_eq!(parse(argument, Grammar::Switches, Some("type")), Ok(pairs(&expected)), "{argument}");
        }
    }

    #[test]
    fn trees() {
        let tree = |argument| parse(argument, Grammar::Tree, Some("driver"));
        assert_eq!(
            tree("raw,file.driver=file,file.filename=/a,,b"),
            Ok(pairs(&[("driver", "raw"), ("file.driver", "file"), ("file.filename", "/a,b")]))
        );
        assert_eq!(tree("raw,,x"), Err("Invalid parameter ''".to_owned()));
        assert_eq!(tree("raw,x"), Err("Expected '=' after parameter 'x'".to_owned()));
        assert_eq!(tree("raw,file=a,file.b=c"), Err("Parameters 'file.*' used inconsistently".to_owned()));
        assert_eq!(tree("raw,.=a"), Err("Invalid parameter '.'".to_owned()));
    }

    #[test]
    fn json() {
        let mut pairs = parse_or_json(r#"{"a":{"b":1,"c":{"d":true}},"e":"f"}"#, Grammar::Tree, "x").unwrap();
        assert_eq!(pairs.unsigned("a.b", "integer"), Ok(Some(1)));
        assert_eq!(pairs.switch("a.c.d"), Ok(Some(true)));
        assert_eq!(pairs.finish(), Err("Invalid parameter 'e'".to_owned()));
        assert_eq!(pairs.switch("e"), Err("Invalid parameter type for 'e', expected: boolean".to_owned()));
        assert_eq!(pairs.finish(), Ok(()));
        let premature = parse_or_json(r#"{"a":"#, Grammar::Tree, "x");
        assert_eq!(premature, Err("JSON parse error, premature EOI".to_owned()));
        let deep = "{\"a\":".repeat(100_000);
        assert!(parse_or_json(&deep, Grammar::Tree, "x").is_err());
    }

    #[test]
    fn the_last_one_wins() {
        let mut pairs = parse("a=1,b=2,a=3", Grammar::Switches, None).unwrap();
        assert_eq!(pairs.text("a"), Ok(Some("3".to_owned())));
        assert_eq!(pairs.text("a"), Ok(None));
        assert_eq!(pairs.leftover(), Some("b"));
    }
}
