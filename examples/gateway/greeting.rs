//! What the gateway prints at start: where it listens, and what to try.

use std::io::{self, Write};
use std::net::SocketAddr;

use tower_admission::Quota;

pub(crate) fn print(address: SocketAddr, max_concurrency: usize, quota: Quota) {
    let in_flight = match max_concurrency {
        0 => "off".to_owned(),
        limit => limit.to_string(),
    };
    // Enough requests to be rejected, if a shell can send as many.
    let callers = max_concurrency.saturating_add(8).min(200);
    let greeting = format!(
        r#"Listening on http://{address}
HTTP/1.1, HTTP/2 and gRPC share these limits:
  requests in flight     {in_flight}
  for each token or IP   {quota}

Never limited:
  curl -i http://{address}/health

What is left is in the header (RateLimit):
  curl -i http://{address}/api/echo -H 'authorization: Bearer alice' -d hello
  curl -N 'http://{address}/api/stream?chunks=10&ms=100'

Too many with one token are answered 429; other tokens go on:
  curl -s -o /dev/null -w '%{{http_code}}\n' -H 'authorization: Bearer bob' -d hello 'http://{address}/api/echo?n=[1-50]' | uniq -c

Too many at a time, here each with a token of its own, are answered 503:
  seq {callers} | xargs -P {callers} -I@ curl -s -o /dev/null -w '%{{http_code}}\n' -H 'authorization: Bearer user-@' 'http://{address}/api/slow?ms=3000' | sort | uniq -c

/batch has limits of its own, which are stricter:
  curl -s -o /dev/null -w '%{{http_code}}\n' -d hello 'http://{address}/batch/echo?n=[1-3]'

gRPC (each grpcurl also asks for the schema, which counts), and the same without grpcurl:
  grpcurl -plaintext -H 'authorization: Bearer alice' {address} grpc.health.v1.Health/Check
  printf '\0\0\0\0\0' | curl -s --http2-prior-knowledge -D - -o /dev/null --data-binary @- -H 'content-type: application/grpc' -H 'te: trailers' -H 'authorization: Bearer alice' http://{address}/grpc.health.v1.Health/Check

Rejections are logged below. Ctrl-C ends.
"#
    );
    write(&greeting);
}

/// Writes to the standard output. Its reader may be gone, which is no reason to fail.
pub(crate) fn write(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}
