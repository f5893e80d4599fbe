//! Suggests a known word for an unknown one.

use strsim::osa_distance;

/// The most similar known word, if one is similar enough.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let near = known.into_iter().filter_map(|known| {
        let distance = osa_distance(&word, &known.to_lowercase());
        (distance <= known.chars().count() / 3).then_some((distance, known))
    });
    near.min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// The end of an error about an unknown word: a suggestion and the known words.
pub(crate) fn advice<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    let meant = nearest(word, known.clone());
    let known = known.into_iter().collect::<Vec<_>>().join(", ");
    match meant {
        Some(meant) => format!(": did you mean {meant:?}? Known: {known}"),
        None if known.is_empty() => ": none are known".to_owned(),
        None => format!(": known are {known}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_word_has_a_suggestion_and_an_unrelated_word_has_none() {
        let known = ["calls", "jobs", "daily"];
        for (word, meant) in [
            ("call", Some("calls")),
            ("dialy", Some("daily")),
            ("Jobs", Some("jobs")),
            ("streams", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, known), meant, "{word}");
        }
        assert_eq!(
            advice("job", known),
            ": did you mean \"jobs\"? Known: calls, jobs, daily"
        );
        assert_eq!(advice("x", known), ": there are calls, jobs, daily");
        assert_eq!(advice("x", []), ": none are known");
    }
}
