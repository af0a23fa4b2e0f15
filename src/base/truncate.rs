//! Cuts texts that a client chooses.

/// The beginning of a text, at most `max` bytes, cut between characters.
pub fn truncate(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let end = (0..=max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_truncated_between_characters() {
        assert_eq!(truncate("alice", 5), "alice");
        assert_eq!(truncate("alice", 4), "alic");
        assert_eq!(truncate("aé", 2), "a");
        assert_eq!(truncate("é", 1), "");
    }
}
