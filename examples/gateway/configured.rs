//! The gateway with limits from a file.

use std::path::Path;
use std::time::Duration;

use axum::routing::get;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tower_admission::observe::{MetricsObserver, TracingObserver};
use tower_admission_axum::admin::Recorder;
use tower_admission_config::{Admission, Config};
use tracing::error;

use crate::flags::Flags;
use crate::greeting;
use crate::routes::unlimited;
use crate::shutdown::Signals;

pub(crate) async fn serve(signals: Signals, flags: &Flags, file: &Path) -> Result<(), String> {
    // An invalid file ends the program before it opens a port.
    let config = Config::load(file).map_err(|error| error.to_string())?;
    let metrics = recorder().map_err(|error| error.to_string())?;
    let recorder = Recorder::new();
    let admission = Admission::builder(&config)
        .observe(TracingObserver::new())
        .observe(recorder.clone())
        .observe(MetricsObserver::new())
        .observe_store(MetricsObserver::new())
        // A file that ends within a group, or before the first one, is an error. A file that ends between two groups
        // is valid: at start there is no other file to compare with.
        .deny_warnings()
        .build()
        .map_err(|error| error.to_string())?;
    let published = admission.clone();
    let rendering = metrics.clone();
    let scrape = move || async move {
        published.publish(&MetricsObserver::new());
        rendering.render()
    };
    let app = unlimited()
        .route("/metrics", get(scrape))
        .layer(admission.layer())
        // After the layer, so that an operator who repairs a limit is not rejected by it. Without a token no request is
        // admitted; a changed file may add one.
        .nest_service("/admin", admission.admin(&recorder).build());

    let cannot = |error| format!("cannot serve on {}: {error}", flags.listen);
    let listener = TcpListener::bind(flags.listen).await.map_err(cannot)?;
    let address = listener.local_addr().map_err(cannot)?;
    // The service starts without Redis: the failure mode decides until Redis answers.
    if let Some(store) = admission.store()
        && let Err(error) = store.ping().await
    {
        error!(%error, "Redis cannot decide");
    }
    // Reads the overrides. A failure is not final: they are read again in the background.
    if let Err(error) = admission.limits().refresh().await {
        error!(%error, "overrides are not known yet");
    }
    // Logs each change of the file, or its error.
    let _following = admission.follow(file, |_| {});
    let groups: Vec<_> = config.groups().collect();
    let groups = groups.join(", ");
    greeting::write(&format!(
        "Listening on http://{address}\nLimits from {}: {groups}\n",
        file.display()
    ));
    if config.admin_tokens().next().is_some() {
        let admin = format!("To look at them and to change them: http://{address}/admin\n");
        greeting::write(&admin);
    }
    tokio::spawn(compact(metrics));
    crate::run(signals, listener, app, admission.store(), flags.grace()).await;
    Ok(())
}

/// Without this, each measurement is kept until the next scrape: about 50 bytes a request.
async fn compact(metrics: PrometheusHandle) {
    let mut times = tokio::time::interval(Duration::from_secs(5));
    loop {
        times.tick().await;
        metrics.run_upkeep();
    }
}

/// The recorder behind `/metrics`.
fn recorder() -> Result<PrometheusHandle, BuildError> {
    let decision = Matcher::Full("admission_decision_seconds".to_owned());
    let held = Matcher::Full("admission_held_seconds".to_owned());
    PrometheusBuilder::new()
        .set_buckets_for_metric(decision, &MetricsObserver::DECISION_BUCKETS)?
        .set_buckets_for_metric(held, &MetricsObserver::HELD_BUCKETS)?
        .install_recorder()
}
