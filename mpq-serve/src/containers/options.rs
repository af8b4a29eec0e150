//! What the operator says of a move of a container.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::between_hosts::options::{command, host};
use crate::values::target;

/// The options of `mpq-serve move-container`.
#[derive(Debug, Clone, clap::Args)]
pub struct MoveContainerOptions {
    /// Name of the container, here and at B
    #[arg(value_name = "CONTAINER", value_parser = host)]
    pub name: String,

    /// Host to move to, B, as ssh names it
    #[arg(long, value_name = "[USER@]HOST", value_parser = host)]
    pub to: String,

    /// Address at which clients reach the container at B, which they are told
    #[arg(long, value_name = "ADDR:PORT", value_parser = target)]
    pub address: SocketAddr,

    /// Program that runs the container on either host, with its options, separated by spaces: podman, runc or crun
    #[arg(long, value_name = "COMMAND", default_value = "podman", value_parser = command)]
    pub engine: String,

    /// Directory at either host that has the container's config.json; needed by runc and crun
    #[arg(long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,

    /// The mpq-serve in the container
    #[arg(long, value_name = "PROGRAM", default_value = "mpq-serve")]
    pub program: String,

    /// Only look for what would be in the way of the move, on both hosts
    #[arg(long)]
    pub dry_run: bool,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,

    /// Directory, on either host, in which to make a new one for the images; by default in memory, in
    /// /run/mpq-serve/images
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,

    /// Program that reaches B, with its options, separated by spaces
    #[arg(long, value_name = "COMMAND", default_value = "ssh", value_parser = command)]
    pub ssh: String,
}
