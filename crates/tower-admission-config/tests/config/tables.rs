//! Leases and WebSockets in a file, and limits that are switched off.

use std::time::Duration;

use axum::Router;
use http::StatusCode;
use tower_admission::{Key, Leases, Reason};
use tower_admission_config::{Admission, Config};

use super::server::Server;
use super::{File, app, config, status};

/// The secret of all tests of this process.
const SECRET: &str = "07070707070707070707070707070707";

/// Requests of which a test counts how many are admitted.
const MANY: usize = 9;

const JOBS: &str = "[leases.jobs]\nper_tenant = 2\ntotal = 3\nttl = '6h'";

async fn admitted(app: &Router) -> usize {
    let mut admitted = 0;
    while admitted < MANY && status(app, "/api", "alice").await == StatusCode::OK {
        admitted += 1;
    }
    admitted
}

fn acme() -> Key {
    Key::id("org", "acme")
}

/// How many of a tenant's can be at work. They stay at work.
async fn taken(leases: &Leases, tenant: &Key) -> (u32, Reason) {
    for n in 0.. {
        match leases.acquire_new(tenant).await {
            Ok(lease) => lease.detach(),
            Err(rejection) => return (n, rejection.reason()),
        }
    }
    unreachable!()
}

#[tokio::test]
async fn leases_change_at_once() {
    let admission = Admission::new(&config(JOBS)).unwrap();
    let jobs = admission.leases("jobs").unwrap();
    assert_eq!(jobs.time_to_live(), Duration::from_secs(6 * 3600));
    assert_eq!(taken(&jobs, &acme()).await, (2, Reason::KeyAtCapacity));
    let more = JOBS
        .replace("per_tenant = 2", "per_tenant = 9")
        .replace("6h", "1h");
    admission.reload(&config(&more)).unwrap();
    assert_eq!(jobs.time_to_live(), Duration::from_secs(3600));
    assert_eq!(taken(&jobs, &acme()).await, (1, Reason::AtCapacity));
    // What is at work stays counted while the limits are off.
    for off in [
        "enabled = false\n[leases.jobs]",
        "[leases.jobs]\nenabled = false",
    ] {
        let text = more.replace("[leases.jobs]", off);
        admission.reload(&config(&text)).unwrap();
        jobs.acquire(&acme(), "one").await.unwrap().detach();
        admission.reload(&config(JOBS)).unwrap();
        assert_eq!(taken(&jobs, &acme()).await, (0, Reason::KeyAtCapacity));
    }
    // Another table: this one is off, and is still there.
    admission
        .reload(&config("[leases.streams]\nper_tenant = 1"))
        .unwrap();
    jobs.acquire(&acme(), "two").await.unwrap().detach();
    let streams = admission.leases("streams").unwrap();
    assert_eq!(taken(&streams, &acme()).await, (1, Reason::KeyAtCapacity));
    let error = admission.leases("other").unwrap_err().to_string();
    assert_eq!(error, "leases.other: the configuration has no such table");
}

#[tokio::test]
async fn overrides_are_for_leases_of_a_file_as_well() {
    let admission = Admission::new(&config(JOBS)).unwrap();
    let jobs = admission.leases("jobs").unwrap();
    let limit = "jobs=1 concurrent".parse().unwrap();
    let key = "org:acme".parse().unwrap();
    admission.limits().set(&key, limit).await.unwrap();
    assert_eq!(taken(&jobs, &acme()).await, (1, Reason::KeyAtCapacity));
    let totals = admission.limits().totals().await;
    assert!(
        totals
            .iter()
            .any(|total| &*total.name == "jobs" && total.used == 1)
    );
}

#[tokio::test]
async fn processes_share_the_leases_of_a_file() {
    let server = Server::start().await;
    let text = format!(
        "{JOBS}\non_failure = 'closed'\n[store]\nurl = '{}'\nsecret = '{SECRET}'\ndeadline = '2s'",
        server.url()
    );
    super::agree();
    let [here, there] = [(); 2].map(|()| Admission::new(&config(&text)).unwrap());
    let [here_jobs, there_jobs] = [&here, &there].map(|of| of.leases("jobs").unwrap());
    assert_eq!(taken(&here_jobs, &acme()).await, (2, Reason::KeyAtCapacity));
    assert_eq!(
        taken(&there_jobs, &acme()).await,
        (0, Reason::KeyAtCapacity)
    );
    let open = config(&text.replace("'closed'", "'open'"));
    let error = here.reload(&open).unwrap_err().to_string();
    assert!(
        error.contains("leases.jobs.on_failure: this cannot change"),
        "{error}"
    );
    drop(server);
    let rejected = here_jobs.acquire(&acme(), "one").await.unwrap_err();
    assert_eq!(rejected.reason(), Reason::Unavailable);
}

#[tokio::test]
async fn variables_set_these_tables_and_switch_all_off() {
    let file = File::new(&format!(
        "{JOBS}\n[groups.api]\npath = '/api'\nrate = '2/h'"
    ));
    let jobs = async |variables| {
        let admission = Admission::new(&file.load(variables).unwrap()).unwrap();
        let app = app(&admission);
        let admitted = admitted(&app).await;
        let jobs = admission.leases("jobs").unwrap();
        let mut taken = 0;
        while taken < MANY
            && jobs
                .acquire_new(&acme())
                .await
                .map(tower_admission::Lease::detach)
                .is_ok()
        {
            taken += 1;
        }
        (admitted, taken)
    };
    assert_eq!(jobs(&[]).await, (2, 2));
    assert_eq!(
        jobs(&[("ADMISSION_LEASES__JOBS__PER_TENANT", "1")]).await,
        (2, 1)
    );
    assert_eq!(
        jobs(&[("ADMISSION_LEASES__JOBS__ENABLED", "false")]).await,
        (2, MANY)
    );
    assert_eq!(
        jobs(&[("ADMISSION_GROUPS__API__ENABLED", "false")]).await,
        (MANY, 2)
    );
    assert_eq!(jobs(&[("ADMISSION_ENABLED", "false")]).await, (MANY, MANY));
    assert_eq!(jobs(&[("ADMISSION_ENABLED", "true")]).await, (2, 2));
}

#[tokio::test]
async fn a_group_that_is_suspended_keeps_what_was_used() {
    let text = "[groups.api]\npath = '/api'\nrate = '2/h'";
    let admission = Admission::new(&config(text)).unwrap();
    let app = app(&admission);
    assert_eq!(admitted(&app).await, 2);
    admission
        .reload(&config(&format!("{text}\nenabled = false")))
        .unwrap();
    assert_eq!(admitted(&app).await, MANY);
    admission.reload(&config(text)).unwrap();
    assert_eq!(admitted(&app).await, 0);
}

#[test]
fn errors_name_the_field() {
    for (text, expected) in [
        ("[leases.jobs]\nper_tenant = -1", "leases.jobs.per_tenant: "),
        (
            "[leases.jobs]\nttl = '366000h'",
            "leases.jobs.ttl: a lease lives",
        ),
        (
            "[leases.jobs]\ntoatl = 3",
            "leases.jobs: unknown field `toatl`",
        ),
        ("[leases.'a=b']\ntotal = 3", "leases."),
        (
            "[leases.api]\ntotal = 3\n[groups.api]\npath = '/api'\nrate = '1/s'",
            "leases.api: group `api` already has the name `api`",
        ),
        (
            "[leases.jobs]\ntotal = 3\non_failure = 'local share'",
            "leases.jobs.on_failure: ",
        ),
        ("enabled = 'no'", "enabled: expected `true` or `false`"),
        #[cfg(feature = "axum")]
        (
            "[sockets.jobs]\nmessages = 'many'\n[leases.jobs]\ntotal = 3",
            "sockets.jobs.messages: ",
        ),
        #[cfg(feature = "axum")]
        (
            "[sockets.jobs]\nconnections = 1\n[leases.jobs]\ntotal = 3",
            "sockets.jobs: `leases.jobs` already has the name `jobs`",
        ),
    ] {
        let error = Config::from_toml(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    // Without groups nothing is missing.
    assert_eq!(config(JOBS).warnings().len(), 0);
}

/// A program that only checks files needs no endpoint crate.
#[cfg(not(feature = "axum"))]
#[tokio::test]
async fn sockets_are_checked_but_do_not_run_without_their_feature() {
    let sockets = config("[sockets.web]\nmessages = '100/min'");
    assert_eq!(sockets.warnings().len(), 0);
    let error = Admission::new(&sockets).unwrap_err().to_string();
    assert!(
        error.contains("sockets.web: ") && error.contains("`axum`"),
        "{error}"
    );
    let admission = Admission::new(&config("")).unwrap();
    assert!(admission.reload(&sockets).is_err());
}

#[cfg(feature = "axum")]
mod sockets {
    use tower_admission::Capacity;

    use super::*;

    const WEB: &str = "[sockets.web]\nconnections_per_key = 5\nmessages = '100/min'";

    #[tokio::test]
    async fn sockets_change_at_once() {
        let admission = Admission::new(&config(WEB)).unwrap();
        let limiter = admission.sockets("web").unwrap().limiter();
        let connected = || {
            let permits = std::iter::from_fn(|| limiter.try_acquire_for(&acme()).ok());
            permits.take(9).collect::<Vec<_>>().len()
        };
        assert_eq!((connected(), limiter.limit()), (5, Capacity::Unlimited));
        let changed =
            "[sockets.web]\nconnections_per_key = 3\nconnections = 2\nmessages_per_key = '1/s'";
        admission.reload(&config(changed)).unwrap();
        assert_eq!((connected(), limiter.limit()), (2, Capacity::AtMost(2)));
        let off = format!("enabled = false\n{changed}");
        admission.reload(&config(&off)).unwrap();
        assert_eq!(connected(), 9);
        admission
            .reload(&config("[leases.jobs]\ntotal = 1"))
            .unwrap();
        assert_eq!(connected(), 9);
        admission.reload(&config(WEB)).unwrap();
        assert_eq!(connected(), 5);
    }

    #[test]
    fn the_algorithm_of_messages_cannot_change() {
        let admission = Admission::new(&config(WEB)).unwrap();
        for changed in [
            WEB.replace("100/min", "100/min sliding"),
            format!("{WEB}\nmessages_per_key = '1/s sliding'"),
        ] {
            let error = admission.reload(&config(&changed)).unwrap_err().to_string();
            assert!(
                error.contains("cannot change between bucket and sliding window"),
                "{error}"
            );
        }
        let off = config("[sockets.web]\nconnections = 2");
        admission.reload(&off).unwrap();
        admission.reload(&config(WEB)).unwrap();
    }
}
