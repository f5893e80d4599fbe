//! Redis over TLS, with certificates in files.

use std::path::Path;

use http::StatusCode;
use tower_admission_config::{Admission, ConfigError};

use super::certificates::Authority;
use super::{File, agree, app, status};

#[tokio::test]
async fn certificates_are_read_from_files() {
    agree();
    let authority = Authority::new();
    let (_server, port) = authority
        .serve(&authority.issue("server", |_| {}), "yes")
        .await;
    let client = authority.issue("client", |_| {});
    let config = |ca: &Path, key: &Path| {
        format!(
            "[store]\nurl = 'rediss://127.0.0.1:{port}'\ndeadline = '5s'\non_failure = 'closed'\n\
             secret = '07070707070707070707070707070707'\n\
             tls_ca_file = '{}'\ntls_certificate_file = '{}'\ntls_key_file = '{}'\n\
             tls_server_name = 'localhost'\n\
             [groups.api]\npath = '/'\nrate = '1/h'",
            ca.display(),
            client.certificate.display(),
            key.display(),
        )
    };
    let started = |ca: &Path, key: &Path| -> Result<_, ConfigError> {
        Admission::new(&File::new(&config(ca, key)).load(&[])?)
    };
    let key = client.key.with_file_name("key.of-a-start.pem");
    std::fs::copy(&client.key, &key).unwrap();
    let file = File::new(&config(&authority.ca(), &key));
    let admission = Admission::new(&file.load(&[]).unwrap()).unwrap();
    // A service may not be able to read them again, and need not.
    std::fs::remove_file(&key).unwrap();
    admission.reload_file(file.path()).unwrap();
    let error = started(&authority.ca(), &key).unwrap_err();
    assert_eq!(error.field(), Some("store.tls_key_file"), "{error}");
    let app = app(&admission);
    assert_eq!(status(&app, "/api", "alice").await, StatusCode::OK);
    let second = status(&app, "/api", "alice").await;
    assert_eq!(second, StatusCode::TOO_MANY_REQUESTS);

    for (ca, key, field) in [
        (&client.key, &client.key, "store.tls_ca_file"),
        (
            &authority.ca(),
            &authority.ca(),
            "store.tls_certificate_file",
        ),
    ] {
        let error = started(ca, key).unwrap_err();
        assert_eq!(error.field(), Some(field), "{error}");
    }
}
