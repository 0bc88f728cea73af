//! A configuration that is an argument itself: its text in URL-safe base64, as DeepSpeed's launcher hands it on.
//!
//! Source: RFC 4648, section 5. Padding may be absent; `+` and `/` of the plain alphabet are understood too, as DeepSpeed
//! does.

/// The text that `argument` holds, if it is base64 of an object's text and not, say, the name of a file.
pub(super) fn decode(argument: &str) -> Option<String> {
    let text = String::from_utf8(bytes(argument)?).ok()?;
    text.trim_start().starts_with('{').then_some(text)
}

fn bytes(argument: &str) -> Option<Vec<u8>> {
    let padded = argument.trim_end_matches('=');
    let (mut bytes, mut bits, mut num_bits) = (Vec::with_capacity(padded.len() * 3 / 4), 0u32, 0);
    for letter in padded.bytes() {
        let six = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'-' | b'+' => 62,
            b'_' | b'/' => 63,
            _ => return None,
        };
        // At most 13 bits are pending, so none is lost.
        bits = (bits << 6) | u32::from(six);
        num_bits += 6;
        if num_bits >= 8 {
            num_bits -= 8;
            bytes.push((bits >> num_bits) as u8);
            bits &= (1 << num_bits) - 1;
        }
    }
    // What is left over is padding: fewer bits than a letter has, all zero.
    (num_bits < 6 && bits == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_in_base64_is_read_with_and_without_padding_and_in_both_alphabets() {
        assert_eq!(decode("e30=").as_deref(), Some("{}"));
        assert_eq!(decode("e30").as_deref(), Some("{}"));
        assert_eq!(decode("eyJhIjogIn4_Pz4ifQ==").as_deref(), Some("{\"a\": \"~??>\"}"));
        assert_eq!(decode("eyJhIjogIn4/Pz4ifQ").as_deref(), Some("{\"a\": \"~??>\"}"));
    }

    #[test]
    fn names_of_files_and_damaged_texts_are_not_taken_for_base64() {
        for name in ["run.json", "runs/a", "missing", "", "e3", "e31", "e", "e30=x", "W10=", "eyJ\u{e9}"] {
            assert_eq!(decode(name), None, "{name}");
        }
    }
}
