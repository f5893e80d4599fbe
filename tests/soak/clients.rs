//! Clients that send requests without a break, and leave when it suits them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tower::ServiceExt;

use crate::findings::{DELIBERATE, Findings};
use crate::meters::{Meters, TENANTS};
use crate::work::Service;

const FOR_EACH_SERVICE: usize = 24;

/// Above it a request hangs. Far above all deadlines, for a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Clients {
    stopped: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Clients {
    pub(crate) fn start(services: &[Service], meters: &Arc<Meters>, findings: &Findings) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let clients = services
            .iter()
            .cycle()
            .take(services.len() * FOR_EACH_SERVICE);
        let tasks = clients.map(|service| {
            let (service, stopped) = (service.clone(), stopped.clone());
            let (meters, findings) = (meters.clone(), findings.clone());
            tokio::spawn(async move {
                while !stopped.load(Ordering::Relaxed) {
                    send(&service, &meters, &findings).await;
                }
            })
        });
        let tasks = tasks.collect();
        Self { stopped, tasks }
    }

    pub(crate) async fn stop(self, findings: &Findings) {
        self.stopped.store(true, Ordering::Relaxed);
        for task in self.tasks {
            if let Err(error) = task.await {
                findings.add("client", error.to_string());
            }
        }
    }
}

async fn send(service: &Service, meters: &Arc<Meters>, findings: &Findings) {
    let tenant = match fastrand::u32(0..10) {
        0 => format!("once-{}", fastrand::u64(..)),
        _ => fastrand::usize(0..TENANTS).to_string(),
    };
    let request = Request::builder()
        .header("x-tenant", tenant)
        .body(())
        .unwrap();
    let call = service.clone().oneshot(request);
    let meters = meters.clone();
    let exchange = async move {
        let response = match fastrand::u32(0..10) {
            // The client leaves before the response.
            0 => match timeout(Duration::from_millis(fastrand::u64(0..15)), call).await {
                Ok(response) => response,
                Err(_) => return,
            },
            _ => call.await,
        };
        let Ok(mut response) = response else {
            return;
        };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::TOO_MANY_REQUESTS => {
                meters.too_many.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(fastrand::u64(2..20))).await;
            }
            _ => {
                meters.unavailable.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(fastrand::u64(2..20))).await;
            }
        }
        // Some clients leave in the middle of the response.
        let frames = if fastrand::u32(0..10) == 0 {
            1
        } else {
            usize::MAX
        };
        for _ in 0..frames {
            if response.body_mut().frame().await.is_none() {
                break;
            }
        }
    };
    // A task of its own, as the work may panic.
    match timeout(PATIENCE, tokio::spawn(exchange)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) if error.is_panic() => {
            let panic = error.into_panic();
            if panic.downcast_ref::<&str>() != Some(&DELIBERATE) {
                findings.add("panic", "a request panicked".to_owned());
            }
        }
        Ok(Err(error)) => findings.add("client", error.to_string()),
        Err(_) => findings.add("hang", format!("a request took above {PATIENCE:?}")),
    }
}
