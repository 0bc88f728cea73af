//! Reads a run file: JSON with what DeepSpeed's HJSON files use beside it.
//!
//! Beside JSON: comments (`//`, `#`, `/* */`), trailing commas, keys without quotes, a line's end in place of a comma.
//! Refused: a key that stands twice in one object, at any depth, and nesting beyond [`MAX_DEPTH`]. Text values stand in
//! quotes: HJSON's bare ones would turn a missing comma into part of a value.

use serde_json::{Map, Value};
use std::collections::HashMap;

/// Objects and lists inside each other; a configuration needs fewer than ten.
const MAX_DEPTH: usize = 64;

/// Reads `text`; the error is a sentence that names line and column, without the file.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader { text, at: 0, path: Vec::new() };
    reader.skip_space()?;
    if reader.rest().is_empty() {
        return Err("is empty; it must hold settings, such as { \"train_batch_size\": 32 }".into());
    }
    let value = reader.value()?;
    reader.skip_space()?;
    match reader.peek() {
        None => Ok(value),
        Some(found) => Err(reader.error(reader.at, &format!("expected the end of the file, found {found:?}"))),
    }
}

/// The line of a byte offset, counted from 1.
pub(super) fn line_of(text: &[u8], offset: usize) -> usize {
    1 + text[..offset].iter().filter(|&&byte| byte == b'\n').count()
}

struct Reader<'a> {
    text: &'a str,
    /// Offset in bytes of the next character; always on a character's border.
    at: usize,
    /// What leads to the value being read: `.key` or `[position]` each.
    path: Vec<String>,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    fn error(&self, offset: usize, message: &str) -> String {
        let line_start = self.text[..offset].rfind('\n').map_or(0, |newline| newline + 1);
        let column = 1 + self.text[line_start..offset].chars().count();
        format!("line {}, column {column}: {message}", line_of(self.text.as_bytes(), offset))
    }

    /// Passes white space and comments; true if a line ended among them.
    fn skip_space(&mut self) -> Result<bool, String> {
        let start = self.at;
        loop {
            let rest = self.rest();
            if rest.starts_with(char::is_whitespace) {
                self.at += rest.len() - rest.trim_start().len();
            } else if rest.starts_with("//") || rest.starts_with('#') {
                self.at += rest.find('\n').unwrap_or(rest.len());
            } else if rest.starts_with("/*") {
                let end =
                    rest.find("*/").ok_or_else(|| self.error(self.at, "this comment has no end; close it with */"))?;
                self.at += end + 2;
            } else {
                return Ok(self.text[start..self.at].contains('\n'));
            }
        }
    }

    fn value(&mut self) -> Result<Value, String> {
        if self.path.len() > MAX_DEPTH {
            return Err(self.error(self.at, &format!("more than {MAX_DEPTH} objects and lists inside each other")));
        }
        match self.peek() {
            Some('{') => self.object(),
            Some('[') => self.list(),
            Some('"') => Ok(Value::String(self.quoted()?)),
            _ => self.word_value(),
        }
    }

    fn object(&mut self) -> Result<Value, String> {
        let start = self.at;
        self.at += 1;
        let mut map = Map::new();
        let mut lines = HashMap::new();
        self.skip_space()?;
        while !self.take('}') {
            let key_at = self.at;
            let key = self.key(start)?;
            self.path.push(format!(".{key}"));
            if let Some(first) = lines.insert(key.clone(), line_of(self.text.as_bytes(), key_at)) {
                let (path, second) = (self.path.concat(), line_of(self.text.as_bytes(), key_at));
                let name = path.trim_start_matches('.');
                return Err(format!("{name} stands twice, on line {first} and on line {second}; keep one of them"));
            }
            self.skip_space()?;
            if !self.take(':') {
                return Err(self.error(self.at, &format!("expected \":\" after the key {key:?}{}", self.found())));
            }
            self.skip_space()?;
            let value = self.value()?;
            self.path.pop();
            map.insert(key, value);
            self.separator(start, '}', "object")?;
        }
        Ok(Value::Object(map))
    }

    fn list(&mut self) -> Result<Value, String> {
        let start = self.at;
        self.at += 1;
        let mut items = Vec::new();
        self.skip_space()?;
        while !self.take(']') {
            self.path.push(format!("[{}]", items.len()));
            if self.peek().is_none() {
                return Err(self.unclosed(start, "list", ']'));
            }
            items.push(self.value()?);
            self.path.pop();
            self.separator(start, ']', "list")?;
        }
        Ok(Value::Array(items))
    }

    /// What may stand after a member: a comma, the end of a line, or the closing bracket (left for the caller).
    fn separator(&mut self, start: usize, close: char, what: &str) -> Result<(), String> {
        let line_ended = self.skip_space()?;
        let comma = self.take(',');
        self.skip_space()?;
        match self.peek() {
            None => Err(self.unclosed(start, what, close)),
            Some(next) if comma || line_ended || next == close => Ok(()),
            Some(_) => Err(self.error(self.at, &format!("expected \",\" or {:?}{}", close.to_string(), self.found()))),
        }
    }

    fn unclosed(&self, start: usize, what: &str, close: char) -> String {
        let line = line_of(self.text.as_bytes(), start);
        self.error(
            self.at,
            &format!("the file ends inside the {what} that begins on line {line}; close it with {close}"),
        )
    }

    fn key(&mut self, object_start: usize) -> Result<String, String> {
        if self.peek() == Some('"') {
            return self.quoted();
        }
        let word = self.word();
        if word.is_empty() {
            return Err(match self.peek() {
                None => self.unclosed(object_start, "object", '}'),
                Some(_) => self.error(self.at, &format!("expected a key{}", self.found())),
            });
        }
        self.at += word.len();
        Ok(word.to_owned())
    }

    /// The characters up to the next white space, punctuation or quote; empty if one of them is next.
    fn word(&self) -> &'a str {
        let ends = |c: char| c.is_whitespace() || matches!(c, ',' | ':' | '[' | ']' | '{' | '}' | '"' | '\'' | '#');
        let rest = self.rest();
        &rest[..rest.find(ends).unwrap_or(rest.len())]
    }

    fn word_value(&mut self) -> Result<Value, String> {
        let word = self.word();
        let is_number = word.starts_with(|c: char| c == '-' || c.is_ascii_digit());
        let value = match word {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            "null" => Value::Null,
            _ if is_number => serde_json::from_str(word)
                .map_err(|_| self.error(self.at, &format!("{word:?} is not a number; write it as 12, -0.5 or 1e-8")))?,
            "" => return Err(self.error(self.at, &format!("expected a value{}", self.found()))),
            _ => {
                return Err(self.error(self.at, &format!("expected a value, found {word:?}; text stands in \" quotes")));
            }
        };
        self.at += word.len();
        Ok(value)
    }

    fn quoted(&mut self) -> Result<String, String> {
        let (start, body) = (self.at, &self.rest()[1..]);
        let mut escaped = false;
        let end = body.find(|c: char| {
            let ends = (c == '"' && !escaped) || c == '\n';
            escaped = c == '\\' && !escaped;
            ends
        });
        let Some(end) = end.filter(|&end| body[end..].starts_with('"')) else {
            return Err(self.error(start, "this text has no end on its line; close it with \""));
        };
        self.at += 1 + end + 1;
        let literal = &self.text[start..self.at];
        serde_json::from_str(literal).map_err(|_| {
            self.error(start, &format!("{literal} has a control character or an escape that JSON does not know"))
        })
    }

    /// The end of a message that expected something else.
    fn found(&self) -> String {
        self.peek().map_or_else(|| ", found the end of the file".into(), |c| format!(", found {:?}", c.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn comments_trailing_commas_and_bare_keys_are_read() {
        let text = "// a run\n{ # so\n  steps: 10, /* or\n so */ \"lr\": 1e-3\n  \"betas\": [0.9, 0.95,],\n}\n";
        assert_eq!(parse(text).unwrap(), json!({"steps": 10, "lr": 1e-3, "betas": [0.9, 0.95]}));
    }

    #[test]
    fn text_keeps_its_escapes_and_what_looks_like_a_comment() {
        let text = r##"{"a": "http://x # y \"q\" \u00e9 \\", "b": {}}"##;
        assert_eq!(parse(text).unwrap(), json!({"a": "http://x # y \"q\" \u{e9} \\", "b": {}}));
    }

    #[test]
    fn a_key_that_stands_twice_is_named_with_both_lines_at_any_depth() {
        let twice = parse("{\n\"bf16\": {\"enabled\": true},\n\"fp16\": {\"enabled\": false,\n\"enabled\": true}}");
        assert_eq!(twice.unwrap_err(), "fp16.enabled stands twice, on line 3 and on line 4; keep one of them");
        let twice = parse("{\"data\": {\"train\": [{}, {\"path\": 1, \"path\": 1}]}}");
        assert_eq!(twice.unwrap_err(), "data.train[1].path stands twice, on line 1 and on line 1; keep one of them");
    }

    #[test]
    fn every_syntax_error_says_where_it_is_and_what_was_expected() {
        let cases = [
            ("", "is empty; it must hold settings, such as { \"train_batch_size\": 32 }"),
            ("{\"a\": 1", "line 1, column 8: the file ends inside the object that begins on line 1; close it with }"),
            ("{", "line 1, column 2: the file ends inside the object that begins on line 1; close it with }"),
            (
                "{\n \"a\": [1,\n",
                "line 3, column 1: the file ends inside the list that begins on line 2; close it with ]",
            ),
            ("{\"a\" 1}", "line 1, column 6: expected \":\" after the key \"a\", found \"1\""),
            ("{\"a\": 1 \"b\": 2}", "line 1, column 9: expected \",\" or \"}\", found \"\\\"\""),
            ("{\"a\": tru}", "line 1, column 7: expected a value, found \"tru\"; text stands in \" quotes"),
            ("{\"a\": }", "line 1, column 7: expected a value, found \"}\""),
            ("{\"a\": 01}", "line 1, column 7: \"01\" is not a number; write it as 12, -0.5 or 1e-8"),
            ("{\"a\": 1e999}", "line 1, column 7: \"1e999\" is not a number; write it as 12, -0.5 or 1e-8"),
            ("{\"a\": \"b\n\"}", "line 1, column 7: this text has no end on its line; close it with \""),
            (
                "{\"\u{e9}\": \"\\x\"}",
                "line 1, column 7: \"\\x\" has a control character or an escape that JSON does not know",
            ),
            ("{} {}", "line 1, column 4: expected the end of the file, found '{'"),
            ("/* {}", "line 1, column 1: this comment has no end; close it with */"),
            ("{,}", "line 1, column 2: expected a key, found \",\""),
        ];
        for (text, want) in cases {
            assert_eq!(parse(text).unwrap_err(), want, "for {text:?}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_overflow_of_the_stack() {
        let error = parse(&"[".repeat(100_000)).unwrap_err();
        assert_eq!(error, "line 1, column 66: more than 64 objects and lists inside each other");
    }
}
