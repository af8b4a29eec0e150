//! stub
use serde::*;
use std::time::Duration;
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shape {
    pub rate: u64,
    pub burst: u64,
    pub latency: Duration,
    pub delay: Duration,
    pub jitter: Duration,
    pub loss: f64,
    pub reorder: f64,
    pub up: bool,
}
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Change {
    pub up: Option<bool>,
}
impl Shape {
    pub fn check(&self) -> Result<(), String> {
        Ok(())
    }
}
