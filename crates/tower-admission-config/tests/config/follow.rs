//! A file is followed: what was read of it last counts, and what is half-written is not seen.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use tower_admission::Limits;
use tower_admission::observe::Observer;
use tower_admission_config::Admission;

use super::{File, NOTHING, admitted, app, config, status};

fn seconds(n: u64) -> tokio::time::Sleep {
    tokio::time::sleep(Duration::from_secs(n))
}

/// What was told, in order: nothing, or an error.
type Told = Arc<Mutex<Vec<Option<String>>>>;

fn told() -> (
    Told,
    impl FnMut(Result<(), tower_admission_config::ConfigError>) + Send + 'static,
) {
    let told = Told::default();
    let tell = told.clone();
    (told, move |reloaded| {
        let error = reloaded.err().map(|error| error.to_string());
        tell.lock().unwrap().push(error);
    })
}

#[tokio::test(start_paused = true)]
async fn a_file_is_followed() {
    let file = File::new("[groups.api]\npath = '/api'\nrate = '1/h'");
    let admission = Admission::new(&file.load(&[]).unwrap()).unwrap();
    let app = app(&admission);
    let (told, tell) = told();
    let following = admission.follow(file.path(), tell);
    let pass = || seconds(10);
    pass().await;
    assert_eq!(admitted(&app, "/api", "alice").await, 1);
    file.write("[groups.api]\npath = '/api'\nrate = '3/h'");
    pass().await;
    assert_eq!(admitted(&app, "/api", "alice").await, 2);
    file.write("[groups.api]\nrate = '3 in an hour'");
    pass().await;
    assert_eq!(
        status(&app, "/api", "alice").await,
        StatusCode::TOO_MANY_REQUESTS
    );
    std::fs::remove_file(file.path()).unwrap();
    pass().await;
    file.write("[groups.api]\npath = '/api'\nrate = '4/h'");
    pass().await;
    assert_eq!(admitted(&app, "/api", "alice").await, 1);
    drop(following);
    file.write("");
    pass().await;
    assert_eq!(
        status(&app, "/api", "alice").await,
        StatusCode::TOO_MANY_REQUESTS
    );
    let place = format!("{}:", file.path().display());
    let told = told.lock().unwrap();
    let [None, Some(bad), Some(missing), None] = &told[..] else {
        panic!("{told:?}")
    };
    assert!(
        bad.starts_with(&format!("{place}2:8: groups.api.rate: ")),
        "{bad}"
    );
    assert!(missing.starts_with(&place), "{missing}");
}

#[tokio::test(start_paused = true)]
async fn a_half_written_file_is_not_applied() {
    let text = "[groups.api]\npath = '/api'\nrate = '5/h'\n";
    let file = File::new(text);
    let admission = Admission::new(&file.load(&[]).unwrap()).unwrap();
    let app = app(&admission);
    let (told, tell) = told();
    let _following = admission.follow(file.path(), tell);
    assert_eq!(admitted(&app, "/api", "alice").await, 5);
    // Between two looks.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for half in ["", "# limits\n", "[groups.api]\npath = '/api'\nrate = '5"] {
        // As by an editor that is held up between truncating and writing: one look sees it.
        file.write(half);
        seconds(1).await;
        file.write(text);
        seconds(3).await;
        assert_eq!(admitted(&app, "/api", "alice").await, 0, "{half}");
        std::fs::remove_file(file.path()).unwrap();
        seconds(1).await;
        file.write(text);
        seconds(3).await;
    }
    assert_eq!(*told.lock().unwrap(), []);
    // A text that changes with each look is not settled.
    for n in 0..5 {
        file.write(&format!("{text}headers = 'off'\n# {n}\n"));
        seconds(1).await;
    }
    assert_eq!(*told.lock().unwrap(), []);
    seconds(1).await;
    assert_eq!(*told.lock().unwrap(), [None]);
    // What stays empty is not meant so, unless it says that it is.
    file.write("");
    seconds(3).await;
    assert!(matches!(&told.lock().unwrap()[..], [None, Some(_)]));
    assert_eq!(admitted(&app, "/api", "alice").await, 0);
    file.write(NOTHING);
    seconds(3).await;
    assert!(matches!(&told.lock().unwrap()[..], [None, Some(_), None]));
    assert_eq!(status(&app, "/api", "alice").await, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn the_last_read_text_counts_not_the_last_applied_one() {
    let group = |rate: &str| format!("[groups.api]\npath = '/api'\nrate = '{rate}'\n");
    let file = File::new(&group("5/h"));
    let other = File::new(&group("7/h"));
    let admission = Admission::new(&file.load(&[]).unwrap()).unwrap();
    let app = app(&admission);
    admission.reload(&config(&group("6/h"))).unwrap();
    let (told, tell) = told();
    let _following = admission.follow(file.path(), tell);
    seconds(5).await;
    assert_eq!(admitted(&app, "/api", "alice").await, 6);
    admission.reload(&other.load(&[]).unwrap()).unwrap();
    seconds(5).await;
    assert_eq!(admitted(&app, "/api", "alice").await, 1);
    // The service may be quicker.
    file.write(&group("9/h"));
    admission.reload(&file.load(&[]).unwrap()).unwrap();
    seconds(5).await;
    assert_eq!(*told.lock().unwrap(), []);
    assert_eq!(admitted(&app, "/api", "alice").await, 2);
    file.write(&group("5/h"));
    seconds(5).await;
    file.write(&group("10/h"));
    seconds(5).await;
    assert_eq!(*told.lock().unwrap(), [None, None]);
    assert_eq!(admitted(&app, "/api", "alice").await, 5);
}

#[tokio::test(start_paused = true)]
async fn variables_that_were_given_stay() {
    let text = "[groups.api]\npath = '/api'\nrate = '5/h'\n";
    let file = File::new(text);
    let other = File::new("");
    let given = [("ADMISSION_GROUPS__API__RATE", "8/h")];
    for followed in [&file, &other] {
        let config = file.load(&given).unwrap();
        let admission = Admission::new(&config).unwrap();
        let app = app(&admission);
        let (told, tell) = told();
        let _following = admission.follow(followed.path(), tell);
        for n in 0..2 {
            followed.write(&format!("{text}# {n}\n"));
            seconds(5).await;
        }
        assert_eq!(*told.lock().unwrap(), [None, None]);
        assert_eq!(admitted(&app, "/api", "alice").await, 8);
    }
}

#[tokio::test(start_paused = true)]
async fn each_file_has_the_variables_that_went_before_it() {
    let file = File::new("[groups.api]\npath = '/api'\nrate = '5/h'\n");
    let other = File::new("[groups.api]\npath = '/api'\nrate = '6/h'\n");
    let given = [("ADMISSION_GROUPS__API__RATE", "8/h")];
    let admission = Admission::new(&file.load(&given).unwrap()).unwrap();
    let app = app(&admission);
    let (told, tell) = told();
    let _following = admission.follow(file.path(), tell);
    admission.reload(&other.load(&[]).unwrap()).unwrap();
    seconds(5).await;
    assert_eq!(admitted(&app, "/api", "alice").await, 6);
    file.write("[groups.api]\npath = '/api'\nrate = '5/h'\n# changed");
    seconds(5).await;
    assert_eq!(*told.lock().unwrap(), [None]);
    assert_eq!(admitted(&app, "/api", "alice").await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_file_is_the_same_by_another_path() {
    let file = File::new("[groups.api]\npath = '/api'\nrate = '5/h'\n");
    let admission = Admission::new(&file.load(&[]).unwrap()).unwrap();
    admission.reload(&config(NOTHING)).unwrap();
    let (told, tell) = told();
    let folder = file.path().parent().unwrap();
    let within = folder.join("..").join(folder.file_name().unwrap());
    let _following = admission.follow(within.join("gateway.toml"), tell);
    seconds(5).await;
    assert_eq!(*told.lock().unwrap(), []);
}

/// A change is applied without a wait, whatever changed before it.
#[tokio::test(start_paused = true)]
async fn a_file_is_taken_however_often_rates_were_changed() {
    let text = |n: u32| format!("[groups.api]\npath = '/api'\nrate = '{n} per 6s'");
    let file = File::new(&text(1000));
    let admission = Admission::new(&file.load(&[]).unwrap()).unwrap();
    let app = app(&admission);
    let (told, tell) = told();
    let _following = admission.follow(file.path(), tell);
    for n in 1001..2000 {
        admission.reload(&config(&text(n))).unwrap();
    }
    file.write("[groups.api]\npath = '/api'\nrate = '7/h'");
    seconds(5).await;
    assert_eq!(*told.lock().unwrap(), [None]);
    assert_eq!(admitted(&app, "/api", "alice").await, 7);
}

/// As with releases of which one is the current.
#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn a_file_is_the_same_when_its_folder_is_linked_elsewhere() {
    let text = "[groups.api]\npath = '/api'\nrate = '5/h'\n";
    let (first, second) = (File::new(text), File::new(text));
    let place = File::new("");
    let current = place.path().parent().unwrap().join("current");
    let link = |file: &File| {
        let _ = std::fs::remove_file(&current);
        std::os::unix::fs::symlink(file.path().parent().unwrap(), &current).unwrap();
    };
    link(&first);
    let followed = current.join("gateway.toml");
    let variables = [("ADMISSION_GROUPS__API__RATE".to_owned(), "8/h".to_owned())];
    let loaded = tower_admission_config::Config::load_with(&followed, variables).unwrap();
    let admission = Admission::new(&loaded).unwrap();
    admission.reload(&config(NOTHING)).unwrap();
    let (told, tell) = told();
    let _following = admission.follow(followed, tell);
    seconds(5).await;
    link(&second);
    seconds(5).await;
    assert_eq!(*told.lock().unwrap(), []);
    // It has the same variables, too.
    place.write(NOTHING);
    admission.reload(&place.load(&[]).unwrap()).unwrap();
    second.write(&format!("{text}# changed\n"));
    seconds(5).await;
    assert_eq!(*told.lock().unwrap(), [None]);
    assert_eq!(admitted(&app(&admission), "/api", "alice").await, 8);
}

/// What a file does not fit to may change without it.
#[tokio::test(start_paused = true)]
async fn a_file_is_tried_again_that_was_rejected_for_what_is_not_in_it() {
    let text = "[groups.api]\npath = '/api'\nrate = '5/h'\n";
    let file = File::new(text);
    let admission = Admission::new(&file.load(&[]).unwrap()).unwrap();
    let limits = admission.limits();
    let key = |n: usize| format!("org:o{n}").parse().unwrap();
    // All but 7 an hour.
    for n in (1..=Limits::MAX_RATES + 1).filter(|n| *n != 7 * 24) {
        let limit = format!("{n}/day").parse().unwrap();
        limits.set(&key(n), limit).await.unwrap();
    }
    let (told, tell) = told();
    let _following = admission.follow(file.path(), tell);
    file.write(&format!("{text}[limits]\n'bearer:alice' = '7/h'\n"));
    seconds(60).await;
    let no_room = |told: &Option<String>| told.as_ref().is_some_and(|told| told.contains("rates"));
    assert!(
        matches!(&told.lock().unwrap()[..], [told] if no_room(told)),
        "{told:?}"
    );
    limits.delete(&key(1)).await.unwrap();
    seconds(30).await;
    assert!(
        matches!(&told.lock().unwrap()[..], [told, None] if no_room(told)),
        "{told:?}"
    );
    assert!(admission.last_reload().error.is_none());
    assert_eq!(admitted(&app(&admission), "/api", "alice").await, 7);
}

/// Panics once when a limit is reported.
#[derive(Clone, Default)]
struct Panics(Arc<AtomicBool>);

impl Observer for Panics {
    fn limit(&self, _: &str, _: Option<u64>) {
        assert!(!self.0.swap(false, Ordering::SeqCst), "as an observer may");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reload_that_panics_is_reported_and_tried_again() {
    let text = "[groups.api]\npath = '/api'\nconcurrency = 5\nrate = '5/h'\n";
    let file = File::new(text);
    let panics = Panics::default();
    let config = file.load(&[]).unwrap();
    let admission = Admission::builder(&config).observe(panics.clone());
    let admission = admission.build().unwrap();
    let (told, tell) = told();
    let _following = admission.follow(file.path(), tell);
    panics.0.store(true, Ordering::SeqCst);
    file.write(&text.replace('5', "7"));
    seconds(5).await;
    let has_panicked = |told: &Option<String>| {
        let told = told.as_deref().unwrap_or_default();
        told.contains("the reload panicked")
    };
    assert!(has_panicked(&told.lock().unwrap()[0]));
    seconds(30).await;
    assert!(
        matches!(&told.lock().unwrap()[..], [first, None] if has_panicked(first)),
        "{told:?}"
    );
    assert!(admission.last_reload().error.is_none());
    assert_eq!(admitted(&app(&admission), "/api", "alice").await, 7);
}
