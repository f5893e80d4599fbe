//! The guide's walk from a complaint to its answer: its requests against its configuration, and the answers that it shows.

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::process::{File, Gateway, soon, text};

const GUIDE: &str = include_str!("../../docs/guide/operating.md");

/// The code blocks of the section, with their language.
fn blocks(language: &str) -> Vec<&'static str> {
    let (_, section) = GUIDE.split_once("\n# From complaint to answer\n").unwrap();
    let (section, _) = section.split_once("\n# ").unwrap();
    let blocks = section.split("\n```").skip(1).step_by(2);
    blocks
        .filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n'))
        .collect()
}

/// The same, without what differs between two runs: fingerprints and times.
fn comparable(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| {
                let value = match name.as_str() {
                    "at" | "changed_at" | "retry_after_ms" if value.is_number() => json!(0),
                    _ => comparable(value),
                };
                (name.clone(), value)
            });
            Value::Object(fields.collect())
        }
        Value::Array(all) => all.iter().map(comparable).collect(),
        Value::String(text) => match text.split_once('#') {
            Some((kind, _)) => json!(format!("{kind}#..")),
            None => value.clone(),
        },
        _ => value.clone(),
    }
}

#[tokio::test]
async fn the_guide_shows_what_the_gateway_answers() {
    let [config] = blocks("toml")[..] else {
        panic!("one configuration");
    };
    let file = File::new("guide.toml", config);
    let gateway = Gateway::start(&["--config", file.path()]);
    let tokens: Vec<_> = config
        .lines()
        .filter_map(|line| line.strip_prefix("token = "))
        .map(|token| token.trim_matches('"'))
        .collect();
    let [anna, support] = tokens[..] else {
        panic!("{tokens:?}");
    };
    let ask = async |method, path: &str, token, body: Value| -> Value {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let mut request = gateway.request(method, &format!("/admin{path}"), token, &body);
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(CONTENT_TYPE, json);
        let answer = soon(gateway.client.request(request)).await.unwrap();
        let (status, body) = (answer.status(), text(answer).await);
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    };

    // The complaint: the client has used its day.
    const CLIENT: &str = "sk-of-a-client-that-complains";
    let used_up = async {
        let mut admitted = 0;
        while admitted < 100 {
            admitted += usize::from(gateway.get("/api/slow?ms=0", CLIENT).await == 200);
        }
    };
    soon(used_up).await;
    // The burst is full again.
    let full = async {
        let mut burst = json!(1);
        while burst != 0 {
            let body = json!({ "credential": CLIENT });
            let resolved = ask(Method::POST, "/keys/resolve", support, body).await;
            burst = resolved["keys"][0]["usage"][0]["used"].clone();
        }
    };
    soon(full).await;

    let mut lines = Vec::new();
    let body = json!({ "credential": CLIENT });
    let resolved = ask(Method::POST, "/keys/resolve", support, body).await;
    let keys = resolved["keys"].as_array().unwrap();
    let shown =
        |key: &Value| json!({ "key": key["key"], "limit": key["limit"], "usage": key["usage"] });
    lines.extend(keys.iter().map(shown));
    let key = keys[0]["key"].as_str().unwrap();

    let question = json!({ "key": key, "path": "/api/slow" });
    let explained = ask(Method::POST, "/explain", support, question.clone()).await;
    lines.extend(explained["limits"].as_array().unwrap().iter().cloned());
    lines.push(explained["now"].clone());

    let path = format!("/limits/{}", utf8_percent_encode(key, NON_ALPHANUMERIC));
    let limit = json!({ "limit": "Gateway.daily=500/day" });
    lines.push(ask(Method::PUT, &path, anna, limit).await);
    let explained = ask(Method::POST, "/explain", support, question).await;
    lines.push(explained["now"].clone());
    let changes = ask(Method::GET, "/changes?count=1", support, Value::Null).await;
    lines.push(changes["changes"][0].clone());

    let shown: Vec<Value> = blocks("text")
        .iter()
        .flat_map(|block| block.lines())
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    let now: Vec<_> = lines.iter().map(Value::to_string).collect();
    assert!(
        shown
            .iter()
            .map(comparable)
            .eq(lines.iter().map(comparable)),
        "docs/guide/operating.md shows other answers; these are right:\n{}",
        now.join("\n")
    );
}
