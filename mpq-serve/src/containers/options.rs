//! What the operator says of a move of a container.

use std::path::PathBuf;

use crate::between_hosts::options::{Transfer, command, host};

/// The options of `mpq-serve move-container`.
#[derive(Debug, Clone, clap::Args)]
pub struct MoveContainerOptions {
    /// Name of the container, here and at B
    #[arg(value_name = "CONTAINER", value_parser = host)]
    pub name: String,

    /// Where to, and how.
    #[command(flatten)]
    pub transfer: Transfer,

    /// Program that runs the container on either host, with its options, separated by spaces: podman, runc or crun
    #[arg(long, value_name = "COMMAND", default_value = "podman", value_parser = command)]
    pub engine: String,

    /// Directory at either host that has the container's config.json; needed by runc and crun
    #[arg(long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,

    /// The mpq-serve in the container
    #[arg(long, value_name = "PROGRAM", default_value = "mpq-serve")]
    pub program: String,
}
