//! Endpoints for [axum](https://docs.rs/axum/0.8) services that use [`tower_admission`]: sessions, WebSockets with
//! limits, and the administration of limits.
//!
//! - [`sessions`]: workers start, keep alive and end sessions that [`Leases`](tower_admission::Leases) count.
//! - `ws` (feature `ws`): limits on WebSocket connections and on their messages.
//! - `admin` (feature `admin`): endpoints and a page that show limits and change them.
//!
//! # Features
//!
//! None is on by default.
//!
//! | feature | adds |
//! |---|---|
//! | `ws` | the module `ws` |
//! | `admin` | the module `admin` |
//! | `metrics` | a counter of failed sign-ins to the admin endpoints |

#![cfg_attr(docsrs, feature(doc_cfg))]

mod endpoint;

#[cfg(feature = "admin")]
pub mod admin;
pub mod sessions;
#[cfg(feature = "ws")]
pub mod ws;

/// The README's code compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
