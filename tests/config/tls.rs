//! Redis over TLS, with certificates in files.

use std::path::Path;

use http::StatusCode;
use tower_admission::config::{Admission, ConfigError};

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
    let config = |ca: &Path, key: &Path| -> Result<_, ConfigError> {
        File::new(&format!(
            "[store]\nurl = 'rediss://127.0.0.1:{port}'\ndeadline = '5s'\non_failure = 'closed'\n\
             secret = '07070707070707070707070707070707'\n\
             tls_ca_file = '{}'\ntls_certificate_file = '{}'\ntls_key_file = '{}'\n\
             tls_server_name = 'localhost'\n\
             [groups.api]\npath = '/'\nrate = '1/h'",
            ca.display(),
            client.certificate.display(),
            key.display(),
        ))
        .load(&[])
    };
    let admission = Admission::new(&config(&authority.ca(), &client.key).unwrap()).unwrap();
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
        let error = config(ca, key).unwrap_err();
        assert_eq!(error.field(), Some(field), "{error}");
    }
}
