//! Reads a run file: HJSON, the form of JSON that DeepSpeed reads, without what would hide a slip.
//!
//! Beside JSON: comments (`//`, `#`, `/* */`), trailing commas, a line's end in place of a comma, keys without quotes, texts
//! in `'` quotes, without quotes (to the end of their line, whatever stands there) or in `'''` over several lines, and a
//! file without its outer braces.
//! Refused, at any depth: a key that stands twice in one object, and nesting beyond [`MAX_DEPTH`]. Where we differ from
//! HJSON: `1 b: 2` on one line is a missing comma and `1e999` no number, where HJSON reads texts.
//! Source: the HJSON syntax description, <https://hjson.github.io/syntax.html>.

use serde_json::{Map, Value};
use std::collections::HashMap;

/// Objects and lists inside each other; a configuration needs fewer than ten.
pub(super) const MAX_DEPTH: usize = 64;

/// Reads the `text` of a file; the error is a sentence that names line and column, without the file.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut reader = Reader::new(text.strip_prefix('\u{feff}').unwrap_or(text));
    reader.skip_space()?;
    let value = match reader.peek() {
        None => return Err("is empty; it must hold settings, such as { \"train_batch_size\": 32 }".into()),
        Some('{' | '[' | '}' | ']' | ',' | ':') => reader.value()?,
        Some(_) => reader.members(0, None)?,
    };
    reader.end(value)
}

/// Reads one value, as it stands after a key.
pub(super) fn parse_value(text: &str) -> Result<Value, String> {
    let mut reader = Reader::new(text);
    reader.skip_space()?;
    let value = reader.value()?;
    reader.end(value)
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
    /// Offset and words of the last text without quotes: where a lost bracket may be.
    bare: Option<(usize, &'a str)>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, at: 0, path: Vec::new(), bare: None }
    }

    /// `value`, if nothing stands after it.
    fn end(&mut self, value: Value) -> Result<Value, String> {
        self.skip_space()?;
        match self.peek() {
            None => Ok(value),
            Some(found) => Err(self.error(self.at, &format!("expected the end of the file, found {found:?}"))),
        }
    }

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
            Some('{') => {
                self.at += 1;
                self.members(self.at - 1, Some('}'))
            }
            Some('[') => self.list(),
            Some('\'') if self.rest().starts_with("'''") => self.lines(),
            Some(quote @ ('"' | '\'')) => Ok(Value::String(self.quoted(quote)?)),
            _ => self.bare(),
        }
    }

    /// The members of the object that begins at `start`, up to `close`; none: up to the end of the file.
    fn members(&mut self, start: usize, close: Option<char>) -> Result<Value, String> {
        let mut map = Map::new();
        let mut offsets = HashMap::new();
        self.skip_space()?;
        while !close.map_or(self.peek().is_none(), |close| self.take(close)) {
            let key_at = self.at;
            let key = self.key(start)?;
            self.path.push(format!(".{key}"));
            if let Some(first) = offsets.insert(key.clone(), key_at) {
                let [first, second] = [first, key_at].map(|offset| line_of(self.text.as_bytes(), offset));
                let path = self.path.concat();
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
            self.separator(start, close, "object")?;
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
            self.separator(start, Some(']'), "list")?;
        }
        Ok(Value::Array(items))
    }

    /// What may stand after a member: a comma, the end of a line, or the closing bracket (left for the caller).
    fn separator(&mut self, start: usize, close: Option<char>, what: &str) -> Result<(), String> {
        let line_ended = self.skip_space()?;
        let comma = self.take(',');
        self.skip_space()?;
        match (self.peek(), close) {
            (None, Some(close)) => Err(self.unclosed(start, what, close)),
            (next, close) if comma || line_ended || next == close => Ok(()),
            (_, close) => {
                let close = close.map_or("a new line".into(), |close| format!("{:?}", close.to_string()));
                Err(self.error(self.at, &format!("expected \",\" or {close}{}", self.found())))
            }
        }
    }

    fn unclosed(&self, start: usize, what: &str, close: char) -> String {
        let line = line_of(self.text.as_bytes(), start);
        let hint = self.bare.filter(|(_, words)| words.contains(close)).map_or(String::new(), |(offset, words)| {
            let line = line_of(self.text.as_bytes(), offset);
            format!("; the text {words:?} on line {line} has no quotes and so goes on to the end of its line")
        });
        self.error(
            self.at,
            &format!("the file ends inside the {what} that begins on line {line}; close it with {close}{hint}"),
        )
    }

    fn key(&mut self, object_start: usize) -> Result<String, String> {
        if let Some(quote @ ('"' | '\'')) = self.peek() {
            return self.quoted(quote);
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

    /// A number, `true`, `false`, `null`, or a text without quotes, which goes on to the end of its line.
    fn bare(&mut self) -> Result<Value, String> {
        let line = self.rest().lines().next().unwrap_or_default().trim_end();
        let ends = [",", "}", "]", "#", "//", "/*"].iter().filter_map(|end| line.find(end)).min();
        let words = line[..ends.unwrap_or(line.len())].trim_end();
        let first = words.split_whitespace().next().unwrap_or_default();
        if line.is_empty() || line.starts_with(['{', '}', '[', ']', ',', ':']) {
            return Err(self.error(self.at, &format!("expected a value{}", self.found())));
        }
        // A key after the value is no part of it: a comma is missing, and the caller says so.
        if let Some(value) = scalar(first).filter(|_| first == words || words.contains(':')) {
            self.at += first.len();
            return Ok(value);
        }
        let is_numeric = words.starts_with(|c: char| c == '-' || c.is_ascii_digit())
            && words.chars().all(|c| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E'));
        if is_numeric {
            return Err(self.error(self.at, &format!("{words:?} is not a number; write it as 12, -0.5 or 1e-8")));
        }
        self.bare = Some((self.at, line));
        self.at += line.len();
        Ok(Value::String(line.to_owned()))
    }

    fn quoted(&mut self, quote: char) -> Result<String, String> {
        let (start, body) = (self.at, &self.rest()[1..]);
        let mut escaped = false;
        let end = body.find(|c: char| {
            let ends = (c == quote && !escaped) || c == '\n';
            escaped = c == '\\' && !escaped;
            ends
        });
        let Some(end) = end.filter(|&end| body[end..].starts_with(quote)) else {
            return Err(self.error(start, &format!("this text has no end on its line; close it with {quote}")));
        };
        self.at += 1 + end + 1;
        let literal = &self.text[start..self.at];
        let json = if quote == '"' { literal.to_owned() } else { with_double_quotes(&body[..end]) };
        serde_json::from_str(&json).map_err(|_| {
            self.error(start, &format!("{literal} has a control character or an escape that JSON does not know"))
        })
    }

    /// A text of several lines in `'''`: without the indentation of its opening, and without the first and the last line's
    /// end.
    fn lines(&mut self) -> Result<Value, String> {
        let (start, body) = (self.at, &self.rest()[3..]);
        let line_start = self.text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let indent = self.text[line_start..start].chars().count();
        let Some(end) = body.find("'''") else {
            return Err(self.error(start, "this text has no end; close it with '''"));
        };
        self.at += 3 + end + 3;
        let (first, rest) = body[..end].split_once('\n').unwrap_or((&body[..end], ""));
        let outdented = |line: &'a str| {
            let num_cut = line.chars().take(indent).take_while(|c| matches!(c, ' ' | '\t')).count();
            line[num_cut..].trim_end_matches('\r')
        };
        let first = first.trim_start_matches([' ', '\t']).trim_end_matches('\r');
        let has_rest = body[..end].contains('\n');
        let lines = std::iter::once(first).filter(|first| !first.is_empty() || !has_rest);
        let lines: Vec<&str> = lines.chain(rest.split('\n').filter(|_| has_rest).map(outdented)).collect();
        let text = lines.join("\n");
        Ok(text.strip_suffix('\n').unwrap_or(&text).into())
    }

    /// The end of a message that expected something else.
    fn found(&self) -> String {
        self.peek().map_or_else(|| ", found the end of the file".into(), |c| format!(", found {:?}", c.to_string()))
    }
}

/// What a word means that is not a text.
fn scalar(word: &str) -> Option<Value> {
    serde_json::from_str(word).ok().filter(|value: &Value| !value.is_string())
}

/// The inside of a text in `'` quotes as JSON writes it.
fn with_double_quotes(body: &str) -> String {
    let mut json = String::from("\"");
    let mut escaped = false;
    for c in body.chars() {
        match c {
            // JSON does not know \'.
            '\'' if escaped => _ = json.pop(),
            '"' if !escaped => json.push('\\'),
            _ => {}
        }
        json.push(c);
        escaped = c == '\\' && !escaped;
    }
    json + "\""
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
    fn texts_without_quotes_go_on_to_the_end_of_their_line_and_scalars_end_where_they_end() {
        let text = "# no outer braces\nzero: {\n  stage: 2  # a number\n  device: cpu\n  on: true // yes\n  \
                    path: /a b/c#d, {e}\r\n}\nnone: null, it: ''\nlist: [\n one\n 2\n]";
        let zero = json!({"stage": 2, "device": "cpu", "on": true, "path": "/a b/c#d, {e}"});
        assert_eq!(parse(text).unwrap(), json!({"zero": zero, "none": null, "it": "", "list": ["one", 2]}));
        assert_eq!(parse(r#"{'a"b': 'it\'s "so"\n'}"#).unwrap(), json!({"a\"b": "it's \"so\"\n"}));
    }

    #[test]
    fn a_text_of_several_lines_loses_the_indentation_of_its_opening() {
        let text = "{\n  a: '''\n     one\n       two\n\n     '''\n  b: '''x''', c: ''''''\n}";
        assert_eq!(parse(text).unwrap(), json!({"a": "one\n  two\n", "b": "x", "c": ""}));
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
            (
                "{\"a\": tru}",
                "line 1, column 11: the file ends inside the object that begins on line 1; close it with }; \
                 the text \"tru}\" on line 1 has no quotes and so goes on to the end of its line",
            ),
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
            ("{a: 'b}", "line 1, column 5: this text has no end on its line; close it with '"),
            ("{a: '''b}", "line 1, column 5: this text has no end; close it with '''"),
            ("a: 1 b: 2", "line 1, column 6: expected \",\" or a new line, found \"b\""),
            ("a", "line 1, column 2: expected \":\" after the key \"a\", found the end of the file"),
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
