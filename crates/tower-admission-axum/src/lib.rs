//! Sessions, WebSocket limits and admin endpoints for tower-admission, with axum.
