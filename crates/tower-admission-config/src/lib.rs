//! Limits by route group for tower-admission, from a file and the environment.
