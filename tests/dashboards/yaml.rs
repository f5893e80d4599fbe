//! As much of YAML as the alerts are written in: maps, lists and scalars of one line.

/// A piece of a document.
#[derive(Debug, PartialEq)]
pub(crate) enum Node {
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    /// What a map has under a key.
    pub(crate) fn at(&self, key: &str) -> &Node {
        let Node::Map(entries) = self else {
            panic!("no map that could have {key}: {self:?}");
        };
        let entry = entries.iter().find(|(name, _)| name == key);
        &entry.unwrap_or_else(|| panic!("no {key} in {self:?}")).1
    }

    pub(crate) fn list(&self) -> &[Node] {
        let Node::List(items) = self else {
            panic!("no list: {self:?}");
        };
        items
    }

    pub(crate) fn text(&self) -> &str {
        let Node::Text(text) = self else {
            panic!("no text: {self:?}");
        };
        text
    }
}

/// Reads a document.
///
/// # Panics
///
/// When it is anything else than that: with the number of the line.
pub(crate) fn parse(document: &str) -> Node {
    let lines = document.lines().enumerate().filter_map(|(number, line)| {
        assert!(!line.contains('\t'), "line {}: a tab", number + 1);
        let text = line.trim_start();
        let line = Line {
            number: number + 1,
            indent: line.len() - text.len(),
            text: text.trim_end(),
        };
        (!text.is_empty() && !text.starts_with('#')).then_some(line)
    });
    let lines: Vec<_> = lines.collect();
    let mut rest = &lines[..];
    let node = block(&mut rest, 0);
    if let Some(line) = rest.first() {
        panic!("line {}: less indented than what it is in", line.number);
    }
    node
}

#[derive(Clone, Copy)]
struct Line<'a> {
    number: usize,
    indent: usize,
    text: &'a str,
}

/// A list or a map whose lines are indented by `indent`.
fn block(rest: &mut &[Line<'_>], indent: usize) -> Node {
    let (mut items, mut entries) = (Vec::new(), Vec::new());
    while let Some(line) = rest.first().copied().filter(|line| line.indent >= indent) {
        assert_eq!(line.indent, indent, "line {}: indented", line.number);
        if let Some(item) = line.text.strip_prefix("- ") {
            // Its first entry, which the others are in line with.
            let mut lines = rest.to_vec();
            lines[0] = Line {
                indent: indent + 2,
                text: item,
                ..line
            };
            let mut item = &lines[..];
            items.push(block(&mut item, indent + 2));
            let left = item.len();
            *rest = &rest[rest.len() - left..];
            continue;
        }
        let (key, value) = entry(line);
        *rest = &rest[1..];
        let value = if value.is_empty() {
            let deeper = rest.first().map_or(0, |line| line.indent);
            assert!(deeper > indent, "line {}: no value", line.number);
            block(rest, deeper)
        } else {
            Node::Text(scalar(value, line.number))
        };
        let is_new = entries.iter().all(|(name, _)| name != key);
        assert!(is_new, "line {}: {key} is there twice", line.number);
        entries.push((key.to_owned(), value));
    }
    match (items.is_empty(), entries.is_empty()) {
        (true, false) => Node::Map(entries),
        (false, true) => Node::List(items),
        _ => panic!("neither a map nor a list, before {} lines", rest.len()),
    }
}

fn entry(line: Line<'_>) -> (&str, &str) {
    let (key, value) = (line.text.split_once(": "))
        .or_else(|| line.text.strip_suffix(':').map(|key| (key, "")))
        .unwrap_or_else(|| panic!("line {}: no entry", line.number));
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    assert!(
        !key.is_empty() && key.chars().all(is_word),
        "line {}: {key:?} is no key",
        line.number
    );
    (key, value.trim())
}

fn scalar(value: &str, line: usize) -> String {
    if let Some(quoted) = value.strip_prefix('"') {
        let quoted = quoted.strip_suffix('"');
        let quoted = quoted.unwrap_or_else(|| panic!("line {line}: the quote does not end"));
        assert!(
            !quoted.contains(['"', '\\']),
            "line {line}: an escape, which is not read here"
        );
        return quoted.to_owned();
    }
    // What would mean something else in a plain scalar.
    let is_plain = !value.starts_with(|c: char| "-?:,[]{}#&*!|>'%@`".contains(c))
        && !value.contains(": ")
        && !value.contains(" #")
        && !value.ends_with(':');
    assert!(is_plain, "line {line}: has to be quoted");
    value.to_owned()
}

#[test]
fn what_it_reads() {
    let document = "# words\na:\n  - b: c {d}\n    e:\n      f: \"{g}: h\"\n\n  - b: i\nj: k\n";
    let text = |text: &str| Node::Text(text.into());
    let map = |entries: Vec<(&str, Node)>| {
        let entries = entries.into_iter();
        Node::Map(entries.map(|(key, node)| (key.to_owned(), node)).collect())
    };
    let first = map(vec![
        ("b", text("c {d}")),
        ("e", map(vec![("f", text("{g}: h"))])),
    ]);
    let second = map(vec![("b", text("i"))]);
    let expected = map(vec![
        ("a", Node::List(vec![first, second])),
        ("j", text("k")),
    ]);
    assert_eq!(parse(document), expected);
}

#[test]
fn what_it_refuses() {
    for document in [
        "a:\n",
        "a: b: c\n",
        "a: {b}\n",
        "a: b\na: c\n",
        "a: b\n   c: d\n",
        "a:\n    b: c\n  d: e\n",
        "\ta: b\n",
        "a: \"b\n",
        "a: b\n- c: d\n",
        "just words\n",
    ] {
        let read = std::panic::catch_unwind(|| parse(document));
        assert!(read.is_err(), "{document:?} was read as {read:?}");
    }
}
