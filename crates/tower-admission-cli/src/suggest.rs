//! The known word that a wrong one was probably meant to be.

use strsim::osa_distance;

/// The nearest of some words, if one is near.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let near = known.into_iter().filter_map(|known| {
        let distance = osa_distance(&word, &known.to_lowercase());
        (distance <= known.chars().count() / 3).then_some((distance, known))
    });
    near.min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// What follows an error about a word: what was probably meant, and what there is.
pub(crate) fn advice<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    let meant = nearest(word, known.clone());
    let known = known.into_iter().collect::<Vec<_>>().join(", ");
    match meant {
        Some(meant) => format!(": did you mean {meant:?}? There are: {known}"),
        None if known.is_empty() => ": there are none".to_owned(),
        None => format!(": there are {known}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_has_a_suggestion_and_another_word_has_none() {
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
            ": did you mean \"jobs\"? There are: calls, jobs, daily"
        );
        assert_eq!(advice("x", known), ": there are calls, jobs, daily");
        assert_eq!(advice("x", []), ": there are none");
    }
}
