//! Pins threads to separate cores, if the system allows it.

/// The number of a core.
pub type Core = usize;

/// Two cores that this process may use; `None` if there is only one or pinning is impossible.
#[cfg(target_os = "linux")]
pub fn two() -> Option<[Core; 2]> {
    use rustix::thread::{CpuSet, sched_getaffinity};

    let allowed = sched_getaffinity(None).ok()?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    Some([cores.next()?, cores.next()?])
}

/// Pins the calling thread to this core.
#[cfg(target_os = "linux")]
pub fn pin(core: Option<Core>) {
    use rustix::thread::{CpuSet, sched_setaffinity};

    let Some(core) = core else { return };
    let mut only = CpuSet::new();
    only.set(core);
    sched_setaffinity(None, &only).expect("a core that this process may use");
}

#[cfg(not(target_os = "linux"))]
pub fn two() -> Option<[Core; 2]> {
    None
}

#[cfg(not(target_os = "linux"))]
pub fn pin(_: Option<Core>) {}
