//! The program tower-admission: changes limits and shows usage.

fn main() {}
