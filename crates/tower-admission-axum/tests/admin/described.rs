//! The OpenAPI description: it is valid, and the responses match it.

use serde_json::Value;
use tower_admission::Override;

use super::Service;

#[tokio::test]
async fn the_description_is_an_openapi_document() {
    let service = Service::new();
    let description = service.ask("GET", "/openapi.json", "").await;
    let read = oas3::from_json(&description.text).unwrap();
    read.validate_version().unwrap();
    let operations: Vec<_> = read.operations().collect();
    assert!(operations.len() > 10);
    for (path, method, operation) in &operations {
        let name = format!("{method} {path}");
        assert!(operation.operation_id.is_some(), "{name}");
        for parameter in operation.parameters(&read).unwrap() {
            assert!(!parameter.name.is_empty(), "{name}");
        }
        for (status, response) in operation.responses(&read) {
            assert!(response.description.is_some(), "{name} {status}");
        }
    }
}

/// Checks that each member of a response is described, and that no required member is missing.
#[tokio::test]
async fn responses_match_their_description() {
    let service = Service::new();
    let description = service.ask("GET", "/openapi.json", "").await.json;
    let _held = service.chat.try_acquire().unwrap();
    for _ in 0..4 {
        service.calls("acme").await;
    }
    service.put("org:acme", "calls=1/h").await;
    let filed = Override::new("5/h".parse().unwrap()).with_note("in the file");
    let base = [("org:filed".parse().unwrap(), filed)];
    service.limits.set_base(base).unwrap();
    let mut checked = 0;
    for (method, path, route) in [
        ("GET", "/limits", "/limits"),
        ("GET", "/limits/org:acme", "/limits/{key}"),
        ("PUT", "/limits/org:acme", "/limits/{key}"),
        ("GET", "/usage", "/usage"),
        ("GET", "/usage/org:acme", "/usage/{key}"),
        ("GET", "/now", "/now"),
        ("DELETE if", "/limits/org:acme", "/limits/{key}"),
        ("DELETE", "/limits/org:acme", "/limits/{key}"),
        ("DELETE", "/limits/org:acme", "/limits/{key}"),
        ("PUT", "/limits/acme", "/limits/{key}"),
        ("GET", "/changes", "/changes"),
        ("GET", "/limits/org:filed", "/limits/{key}"),
        ("DELETE", "/limits/org:filed", "/limits/{key}"),
        ("PUT", "/limits/org:filed", "/limits/{key}"),
        ("GET", "/limits", "/limits"),
        ("POST", "/search", "/search"),
        ("POST", "/keys/resolve", "/keys/resolve"),
        ("DELETE", "/limits/org:filed", "/limits/{key}"),
    ] {
        let body = match (method, path) {
            ("PUT", _) => "{\"limit\":\"2/h\"}",
            (_, "/search") => "{\"q\":\"bearer:hunter2\"}",
            (_, "/keys/resolve") => "{\"key\":\"org:acme\"}",
            _ => "",
        };
        let mut request = super::operator(method.trim_end_matches(" if"), path, body);
        if method.ends_with(" if") {
            let other = "\"other\"".parse().unwrap();
            request.headers_mut().insert("if-match", other);
        }
        let answer = service.answer(request).await;
        let method = method.trim_end_matches(" if").to_lowercase();
        let status = answer.status.to_string();
        let described = &description["paths"][route][&method]["responses"][&status];
        let content = &resolved(&description, described)["content"];
        let kind = answer.headers["content-type"].to_str().unwrap();
        let schema = &content[kind]["schema"];
        assert!(schema.is_object(), "{method} {path} {status} {described}");
        checked += conforms(
            &description,
            schema,
            &answer.json,
            &format!("{method} {path}"),
        );
    }
    assert!(checked > 60, "{checked}");
}

fn resolved<'a>(description: &'a Value, item: &'a Value) -> &'a Value {
    match item["$ref"].as_str() {
        Some(reference) => description.pointer(&reference[1..]).unwrap(),
        None => item,
    }
}

/// Checks the types and members of a value, and returns how many it checked.
fn conforms(description: &Value, schema: &Value, value: &Value, at: &str) -> usize {
    let mut members = serde_json::Map::new();
    let mut required = Vec::new();
    let mut parts = vec![schema];
    let (mut types, mut items) = (Vec::new(), None);
    while let Some(part) = parts.pop() {
        let part = resolved(description, part);
        parts.extend(part["allOf"].as_array().into_iter().flatten());
        // One of these is null.
        let of_several = part["oneOf"].as_array().into_iter().flatten();
        parts.extend(of_several.filter(|one| (one["type"] == "null") == value.is_null()));
        members.extend(part["properties"].as_object().cloned().unwrap_or_default());
        required.extend(part["required"].as_array().into_iter().flatten());
        items = part.get("items").or(items);
        match &part["type"] {
            Value::Null => {}
            Value::String(kind) => types.push(kind.clone()),
            several => {
                types.extend(serde_json::from_value::<Vec<String>>(several.clone()).unwrap())
            }
        }
        if let Some(values) = part["enum"].as_array() {
            assert!(values.contains(value), "{at}: {value}");
        }
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    assert!(
        types.is_empty() || types.iter().any(|one| one == kind),
        "{at}: {value}"
    );
    let mut checked = 1;
    for name in required.iter().filter(|_| value.is_object()) {
        assert!(
            value.get(name.as_str().unwrap()).is_some(),
            "{at}: no {name}"
        );
    }
    for (name, member) in value.as_object().into_iter().flatten() {
        let schema = members.get(name);
        let schema = schema.unwrap_or_else(|| panic!("{at}: {name} is not described"));
        checked += conforms(description, schema, member, &format!("{at}.{name}"));
    }
    for one in value.as_array().into_iter().flatten() {
        checked += conforms(description, items.unwrap(), one, &format!("{at}[]"));
    }
    checked
}
