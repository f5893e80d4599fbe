//! Tests that every store of tower-admission has to pass.
