//! The certificates for a Redis with TLS.

use std::path::Path;

use tower_admission_redis::{RedisStore, RedisTls};

use crate::args::ServerArgs;
use crate::failure::Failure;

pub(crate) fn with_certificates(
    store: RedisStore,
    args: &ServerArgs,
) -> Result<RedisStore, Failure> {
    let mut tls = RedisTls::new();
    if let Some(file) = &args.redis_ca {
        tls = tls.ca(read(file)?);
    }
    tls = match (&args.redis_certificate, &args.redis_key) {
        (Some(certificate), Some(key)) => tls.client_certificate(read(certificate)?, read(key)?),
        (None, None) if args.redis_ca.is_none() => return Ok(store),
        (None, None) => tls,
        _ => {
            return Err(Failure::usage(
                "use --redis-certificate and --redis-key together",
            ));
        }
    };
    store.tls(tls).map_err(|error| {
        let reason = error.detail().unwrap_or_default();
        Failure::usage(format!(
            "the certificates for --redis cannot be used: {reason}"
        ))
    })
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(file).map_err(|error| Failure::usage(format!("{}: {error}", file.display())))
}
