//! Changes by several operators, and the search.

use serde_json::{Value, json};

use tower_admission::{Key, KeyName, Override};

use super::{Answer, Service, operator};

const PATH: &str = "/limits/org:acme";

/// A conditional request of an operator.
async fn ask_if(
    service: &Service,
    method: &str,
    condition: (&'static str, &str),
    limit: &str,
) -> Answer {
    let body = match limit {
        "" => String::new(),
        limit => json!({ "limit": limit }).to_string(),
    };
    let mut request = operator(method, PATH, &body);
    let value = condition.1.parse().unwrap();
    request.headers_mut().insert(condition.0, value);
    service.answer(request).await
}

fn tag(answer: &Answer) -> String {
    answer.headers["etag"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_conflicting_change_is_rejected_with_both_overrides() {
    let service = Service::new();
    let set = service.put("org:acme", "5/h").await;
    let read = service.ask("GET", PATH, "").await;
    assert_eq!(tag(&set), tag(&read));

    // Another operator changes the override first.
    let theirs = ask_if(&service, "PUT", ("if-match", &tag(&read)), "6/h").await;
    assert_eq!(
        (theirs.status, &theirs.json["before"]["limit"]),
        (200, &json!("5/h"))
    );
    let mine = ask_if(&service, "PUT", ("if-match", &tag(&read)), "7/h").await;
    assert_eq!(mine.status, 412);
    assert_eq!(
        (
            &mine.json["current"]["limit"],
            &mine.json["wanted"]["limit"]
        ),
        (&json!("6/h"), &json!("7/h"))
    );
    let deleted = ask_if(&service, "DELETE", ("if-match", &tag(&read)), "").await;
    assert_eq!(deleted.status, 412);
    assert_eq!(
        (&deleted.json["current"]["limit"], &deleted.json["wanted"]),
        (&json!("6/h"), &Value::Null)
    );
    assert_eq!(service.ask("GET", PATH, "").await.json["limit"], "6/h");

    // The response has the tag for a second attempt.
    assert_eq!(tag(&mine), tag(&theirs));
    let mine = ask_if(&service, "PUT", ("if-match", &tag(&mine)), "7/h").await;
    assert_eq!(
        (mine.status, &mine.json["before"]["limit"]),
        (200, &json!("6/h"))
    );
    let deleted = ask_if(&service, "DELETE", ("if-match", &tag(&mine)), "").await;
    assert_eq!(deleted.status, 200);

    // A deleted override does not return.
    let late = ask_if(&service, "PUT", ("if-match", &tag(&mine)), "8/h").await;
    assert_eq!((late.status, &late.json["current"]), (412, &Value::Null));
    assert!(!late.headers.contains_key("etag"));
    assert_eq!(service.ask("GET", PATH, "").await.status, 404);
}

#[tokio::test]
async fn a_new_override_does_not_replace_an_existing_one() {
    let service = Service::new();
    let first = ask_if(&service, "PUT", ("if-none-match", "*"), "5/h").await;
    assert_eq!(first.status, 200);
    let second = ask_if(&service, "PUT", ("if-none-match", "*"), "6/h").await;
    assert_eq!(
        (second.status, &second.json["current"]["limit"]),
        (412, &json!("5/h"))
    );
    // Without a precondition the last change wins.
    assert_eq!(service.put("org:acme", "7/h").await.status, 200);
}

#[tokio::test]
async fn a_search_finds_parts_of_keys_and_limits() {
    let service = Service::new();
    for n in 0..1_000 {
        let key = format!("org:Tenant-{n:04}").parse().unwrap();
        let limit = format!("{}/h", 10_000 + n).parse().unwrap();
        service.limits.set(&key, limit).await.unwrap();
    }
    let found = async |body: Value| {
        let answer = service.ask("POST", "/search", &body.to_string()).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json
    };
    let keys = |page: &Value| -> Vec<String> {
        let limits = page["limits"].as_array().unwrap();
        let keys = limits
            .iter()
            .map(|entry| entry["key"].as_str().unwrap().to_owned());
        keys.collect()
    };
    let q = |text: &str| json!({ "q": text });
    assert_eq!(keys(&found(q("tenant-0731")).await), ["org:Tenant-0731"]);
    assert_eq!(keys(&found(q(" TENANT-0731 ")).await), ["org:Tenant-0731"]);
    assert_eq!(keys(&found(q("10042/h")).await), ["org:Tenant-0042"]);
    let page = found(q("nothing")).await;
    assert_eq!((keys(&page).len(), &page["total"]), (0, &json!(1_000)));
    assert_eq!(keys(&found(q("")).await).len(), 1_000);

    // Two pages of keys that end in 7.
    let mut all = Vec::new();
    let mut body = json!({ "q": "7/h", "count": 30 });
    loop {
        let page = found(body.clone()).await;
        all.extend(keys(&page));
        match page["next"].as_str() {
            Some(next) => body["after"] = json!(next),
            None => break,
        }
    }
    let expected: Vec<_> = (0..1_000)
        .filter(|n| n % 10 == 7)
        .map(|n| format!("org:Tenant-{n:04}"))
        .collect();
    assert_eq!(all, expected);
}

#[tokio::test]
async fn an_override_has_an_end_and_a_note() {
    let service = Service::new();
    let put = async |body: Value| service.ask("PUT", PATH, &body.to_string()).await;
    let set = put(json!({ "limit": "deny all", "for_seconds": 3600, "note": "ticket 4711" })).await;
    assert_eq!(set.status, 200, "{}", set.text);
    let read = service.ask("GET", PATH, "").await.json;
    assert_eq!(
        (&read["limit"], &read["note"]),
        (&json!("deny all"), &json!("ticket 4711"))
    );
    let (end, changed_at) = (read["end"].as_u64(), read["changed_at"].as_u64());
    // The end is rounded up to a second, and the clock advanced between the two.
    let span = end.unwrap() - changed_at.unwrap();
    assert!((3_600..=3_602).contains(&span), "{read}");
    let found = service.ask("POST", "/search", "{\"q\":\"TICKET\"}");
    let found = found.await.json;
    assert_eq!(found["limits"], json!([read]));
    let again = put(json!({ "limit": "deny all", "end": end })).await.json;
    assert_eq!((again["end"].as_u64(), &again["note"]), (end, &Value::Null));
    let now = changed_at.unwrap();
    for wrong in [
        // It would replace the ban and have no effect.
        json!({ "limit": "5/h", "end": 1 }),
        json!({ "limit": "5/h", "end": now - 1 }),
        // In milliseconds.
        json!({ "limit": "5/h", "end": (now + 3_600) * 1_000 }),
        json!({ "limit": "5/h", "end": "tomorrow" }),
        json!({ "limit": "5/h", "end": -1 }),
        json!({ "limit": "5/h", "end": u64::MAX }),
        json!({ "limit": "5/h", "for_seconds": 0 }),
        json!({ "limit": "5/h", "for_seconds": u64::MAX }),
        json!({ "limit": "5/h", "end": 1, "for_seconds": 1 }),
        json!({ "limit": "5/h", "note": 7 }),
        // A misspelt `end` would make the ban permanent.
        json!({ "limit": "deny all", "for": 3_600 }),
    ] {
        let refused = put(wrong.clone()).await;
        assert_eq!(refused.status, 422, "{wrong} {}", refused.text);
    }
    let read = service.ask("GET", PATH, "").await.json;
    assert_eq!(read["limit"], "deny all", "nothing was changed");
    let longest = put(json!({ "limit": "5/h", "for_seconds": 315_360_000 })).await;
    let end = &longest.json["end"];
    let again = put(json!({ "limit": "5/h", "end": end })).await;
    assert_eq!((longest.status, again.status), (200, 200), "{}", again.text);
}

/// A pasted token finds its override, and is in no URL and no response.
#[tokio::test]
async fn a_credential_finds_the_override_of_its_key() {
    let service = Service::new();
    let key = KeyName::from(Key::new("bearer", b"hunter2-hunter2")).to_string();
    service.put(&key, "9/h").await;
    service.put("org:acme", "1/h").await;
    for written in [
        "bearer:hunter2-hunter2",
        " Bearer hunter2-hunter2",
        "authorization: Bearer hunter2-hunter2",
    ] {
        let body = json!({ "q": written }).to_string();
        let found = service.ask("POST", "/search", &body).await;
        assert_eq!(
            found.json["limits"].as_array().unwrap().len(),
            1,
            "{written}"
        );
        assert_eq!(
            (&found.json["key"], &found.json["limits"][0]["key"]),
            (&json!(key), &json!(key))
        );
        assert!(!found.text.contains("hunter2"), "{}", found.text);
    }
    for (body, status) in [
        (json!({}), 400),
        (json!([]), 400),
        (json!({ "q": "a", "hunter2": 1 }), 400),
        (json!({ "q": "a", "count": "hunter2" }), 400),
        (json!({ "q": "a", "count": 0 }), 422),
        (json!({ "q": "a", "count": 10_001 }), 422),
        (json!({ "q": "a", "after": "hunter2" }), 422),
        (json!({ "q": "hunter2".repeat(3_000) }), 413),
    ] {
        let answer = service.ask("POST", "/search", &body.to_string()).await;
        assert_eq!(answer.status, status, "{body}");
        assert!(!answer.text.contains("hunter2"), "{}", answer.text);
    }
}

/// An override of the configuration cannot be deleted here. It applies again after the one that replaces it is deleted.
#[tokio::test]
async fn an_override_of_the_configuration_has_the_source_file() {
    let service = Service::new();
    let base = [("org:acme", "5/h"), ("org:other", "deny all")];
    let base = base.map(|(key, limit)| {
        (
            key.parse().unwrap(),
            Override::new(limit.parse().unwrap()).with_note("in the file"),
        )
    });
    service.limits.set_base(base).unwrap();
    let read = service.ask("GET", PATH, "").await;
    let file =
        json!({ "key": "org:acme", "limit": "5/h", "note": "in the file", "source": "file" });
    assert_eq!((read.status, &read.json), (200, &file));
    for condition in [("if-match", &*tag(&read)), ("x-none", "")] {
        let deleted = ask_if(&service, "DELETE", condition, "").await;
        assert_eq!(
            (deleted.status, &deleted.json["code"]),
            (409, &json!("set_in_file"))
        );
    }
    assert_eq!(
        service.ask("DELETE", "/limits/org:none", "").await.status,
        404
    );

    // An override that replaces it.
    let set = ask_if(&service, "PUT", ("if-match", &tag(&read)), "9/h").await;
    let in_file = json!({ "limit": "5/h", "note": "in the file" });
    assert_eq!(
        (set.status, &set.json["source"], &set.json["in_file"]),
        (200, &json!("override"), &in_file)
    );
    let list = service.ask("GET", "/limits", "").await.json;
    let sources: Vec<_> = list["limits"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            (
                entry["key"].as_str().unwrap(),
                entry["source"].as_str().unwrap(),
                entry["in_file"].is_object(),
            )
        })
        .collect();
    assert_eq!(
        sources,
        [("org:acme", "override", true), ("org:other", "file", false)]
    );
    let deleted = service.ask("DELETE", PATH, "").await;
    assert_eq!(
        (
            deleted.status,
            &deleted.json["before"]["limit"],
            &deleted.json["in_file"]
        ),
        (200, &json!("9/h"), &in_file)
    );
    assert_eq!(service.ask("GET", PATH, "").await.json, file);
}

/// The note is part of what the operator has read.
#[tokio::test]
async fn a_new_note_is_a_change() {
    let service = Service::new();
    let noted = |note: &str| json!({ "limit": "5/h", "note": note }).to_string();
    let set = service.ask("PUT", PATH, &noted("one")).await;
    service.ask("PUT", PATH, &noted("two")).await;
    let late = ask_if(&service, "PUT", ("if-match", &tag(&set)), "5/h").await;
    assert_eq!(
        (late.status, &late.json["current"]["note"]),
        (412, &json!("two"))
    );
}
