//! What an expression of Prometheus uses: metrics, their labels, and what is left to name a series by.

/// What is called.
const FUNCTIONS: &[&str] = &[
    "histogram_quantile",
    "increase",
    "label_values",
    "max",
    "min",
    "rate",
    "sum",
];
const AGGREGATIONS: &[&str] = &["max", "min", "sum"];

/// An expression, as far as it is of interest here.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Expression {
    pub(crate) selectors: Vec<Selector>,
    /// The labels of `by (..)`, of all of them.
    pub(crate) by: Vec<String>,
    /// Whether series are added up, so that no labels are left but those of `by`.
    pub(crate) is_aggregated: bool,
}

/// A metric, and what its labels have to be.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Selector {
    pub(crate) metric: String,
    /// Labels, and the values that they are compared with: each one of a regular expression's.
    pub(crate) labels: Vec<(String, Vec<String>)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
}

/// Takes an expression apart.
///
/// # Panics
///
/// When it calls what is no function here, or its brackets do not match.
pub(crate) fn parse(expression: &str) -> Expression {
    let tokens = tokens(expression);
    let mut parsed = Expression::default();
    let mut rest = &tokens[..];
    while let [token, after @ ..] = rest {
        rest = after;
        let Token::Word(word) = token else {
            continue;
        };
        match (word.as_str(), rest) {
            ("by", [Token::Sign('('), list @ ..]) => {
                let (labels, after) = until(list, ')');
                parsed.by.extend(labels.iter().filter_map(word_of));
                rest = after;
            }
            ("label_values", [Token::Sign('('), list @ ..]) => {
                let ([Token::Word(metric), Token::Sign(','), label], after) = until(list, ')')
                else {
                    panic!("{expression}: not a metric and a label");
                };
                parsed.by.extend(word_of(label));
                parsed.is_aggregated = true;
                parsed.selectors.push(Selector {
                    metric: metric.clone(),
                    labels: Vec::new(),
                });
                rest = after;
            }
            (function, [Token::Sign('('), ..]) | (function, [Token::Word(_), ..]) => {
                assert!(FUNCTIONS.contains(&function), "{expression}: {function}?");
                parsed.is_aggregated |= AGGREGATIONS.contains(&function);
            }
            (metric, [Token::Sign('{'), list @ ..]) => {
                let (matchers, after) = until(list, '}');
                parsed.selectors.push(Selector {
                    metric: metric.to_owned(),
                    labels: matchers
                        .split(|token| *token == Token::Sign(','))
                        .map(matcher)
                        .collect(),
                });
                rest = after;
            }
            (metric, _) => parsed.selectors.push(Selector {
                metric: metric.to_owned(),
                labels: Vec::new(),
            }),
        }
    }
    parsed
}

fn matcher(tokens: &[Token]) -> (String, Vec<String>) {
    let [Token::Word(label), Token::Sign(_), .., Token::Text(value)] = tokens else {
        panic!("no matcher: {tokens:?}");
    };
    let is_regular = tokens.contains(&Token::Sign('~'));
    let values = if is_regular {
        value.split('|').map(str::to_owned).collect()
    } else {
        vec![value.clone()]
    };
    (label.clone(), values)
}

fn word_of(token: &Token) -> Option<String> {
    match token {
        Token::Word(word) => Some(word.clone()),
        _ => None,
    }
}

fn until(tokens: &[Token], end: char) -> (&[Token], &[Token]) {
    let at = tokens.iter().position(|token| *token == Token::Sign(end));
    let at = at.unwrap_or_else(|| panic!("no {end} in {tokens:?}"));
    (&tokens[..at], &tokens[at + 1..])
}

/// Words, texts and signs; ranges (`[5m]`) and numbers are left out.
fn tokens(expression: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut open = Vec::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let length = match first {
            '"' => 2 + rest[1..].find('"').expect("a text ends"),
            '[' => 1 + rest.find(']').expect("a range ends"),
            c if is_word(c) => rest.find(|c| !is_word(c) && c != '.').unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        rest = after;
        match first {
            '"' => tokens.push(Token::Text(token[1..length - 1].to_owned())),
            c if c == '[' || c == ' ' || c.is_ascii_digit() => {}
            c if is_word(c) => tokens.push(Token::Word(token.to_owned())),
            c => {
                match c {
                    '(' => open.push(')'),
                    '{' => open.push('}'),
                    ')' | '}' => assert_eq!(open.pop(), Some(c), "{expression}"),
                    _ => {}
                }
                tokens.push(Token::Sign(c));
            }
        }
    }
    assert!(open.is_empty(), "{expression}: no {open:?}");
    tokens
}

#[test]
fn what_it_finds() {
    let found = parse(
        r#"histogram_quantile(0.9, sum by (le, a) (rate(x_bucket{a=~"$a|1", b!="2"}[5m]))) > y"#,
    );
    let label = |name: &str, values: &[&str]| {
        let values = values.iter().map(|value| value.to_string());
        (name.to_owned(), values.collect())
    };
    let x = Selector {
        metric: "x_bucket".into(),
        labels: vec![label("a", &["$a", "1"]), label("b", &["2"])],
    };
    let y = Selector {
        metric: "y".into(),
        labels: Vec::new(),
    };
    let expected = Expression {
        selectors: vec![x, y],
        by: vec!["le".into(), "a".into()],
        is_aggregated: true,
    };
    assert_eq!(found, expected);
    assert!(!parse("rate(x[5m])").is_aggregated);
}

#[test]
fn what_it_refuses() {
    for expression in ["rats(x[5m])", "sum by (a (x)", "sum((x)", "x{a}"] {
        let parsed = std::panic::catch_unwind(|| parse(expression));
        assert!(parsed.is_err(), "{expression}: {parsed:?}");
    }
}
