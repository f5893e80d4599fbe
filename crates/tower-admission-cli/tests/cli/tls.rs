//! With Redis over TLS.

use std::path::Path;

use crate::certificates::Authority;
use crate::run::{Ran, end, program};

async fn list(port: u16, variables: &[(&str, &Path)]) -> Ran {
    let mut command = program();
    command.args(["limits", "list", "--timeout", "30", "--unchecked"]);
    command.env("ADMISSION_REDIS", format!("rediss://localhost:{port}"));
    command.envs(variables.iter().copied());
    end(command).await
}

#[tokio::test]
async fn a_ca_is_trusted_from_a_file_or_as_the_systems() {
    let authority = Authority::new();
    let (_server, port) = authority
        .serve(&authority.issue("server", |_| {}), "no")
        .await;
    for variable in ["SSL_CERT_FILE", "ADMISSION_REDIS_CA"] {
        let listed = list(port, &[(variable, &authority.ca())]).await.ok();
        assert_eq!(listed, "no key has an override", "{variable}");
    }
    let other = Authority::new();
    let failed = list(port, &[("SSL_CERT_FILE", &other.ca())])
        .await
        .failed(4);
    assert!(failed.contains("UnknownIssuer"), "{failed}");
}

#[tokio::test]
async fn a_certificate_is_shown() {
    let authority = Authority::new();
    let (_server, port) = authority
        .serve(&authority.issue("server", |_| {}), "yes")
        .await;
    let (ca, client) = (authority.ca(), authority.issue("client", |_| {}));
    let ca = ("ADMISSION_REDIS_CA", &*ca);
    let certificate = ("ADMISSION_REDIS_CERTIFICATE", &*client.certificate);
    let key = ("ADMISSION_REDIS_KEY", &*client.key);
    list(port, &[ca, certificate, key]).await.ok();
    let failed = list(port, &[ca, certificate]).await.failed(2);
    assert!(failed.contains("--redis-key"), "{failed}");
    let failed = list(port, &[ca]).await.failed(4);
    assert!(failed.contains("CertificateRequired"), "{failed}");
}
