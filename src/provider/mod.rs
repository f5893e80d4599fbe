//! For crates that add stores, endpoints or configuration; not part of the stable API.
//!
//! A minor version may change or remove what is here. The crates of this workspace use it and are released
//! together with this crate; other crates pin the exact version (`=0.1.0`).
