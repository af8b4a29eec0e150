//! Where a body will go, as long as nothing of it has come: what there is already, and stays if nothing comes.

use std::path::PathBuf;

use super::destination::{Destination, Target, follow};
use super::leftover::Leftover;
use super::part::{Claim, LeftAlone, Part};
use crate::error::{Error, cannot_write};
use crate::http::resume::Partial;

/// A place for a body.
#[derive(Debug)]
pub enum Place {
    /// A part, held for this download.
    Part(Part),
    /// What is written to as it is. It is opened when the body comes.
    Stream(PathBuf),
    /// Standard output.
    Stdout,
    /// Standard output, for text only.
    Terminal,
}

/// A place, and what is known of it.
#[derive(Debug)]
pub struct Found {
    /// The place.
    pub place: Place,
    /// What an earlier run has left there.
    pub partial: Partial,
    /// Bytes of the file that there is, where nothing is left of an earlier run.
    pub file: Option<u64>,
    /// What is in the way and stays there.
    pub left_alone: Vec<LeftAlone>,
}

impl Place {
    /// Finds the place for the body of `url`, and holds it.
    ///
    /// # Errors
    /// [`Error::Write`] and [`Error::Part`] if it could not be written to.
    pub fn find(destination: &Destination, url: &str) -> Result<Found, Error> {
        let place = match destination {
            Destination::Stdout => Place::Stdout,
            Destination::Terminal => Place::Terminal,
            Destination::File(path) => match follow(path).map_err(|e| cannot_write(path, e))? {
                Target::Stream(path) => Place::Stream(path),
                Target::File(path) => {
                    let claim = Part::claim(&path, url)?;
                    let known = path.metadata().ok().filter(|_| claim.partial.bytes == 0);
                    return Ok(found(claim, known.map(|known| known.len())));
                }
            },
        };
        Ok(Found {
            place,
            partial: Partial::default(),
            file: None,
            left_alone: Vec::new(),
        })
    }

    /// What stays on the disk if nothing comes.
    pub fn leftover(&self) -> Leftover {
        match self {
            Place::Part(part) => Leftover::of(part),
            Place::Stream(_) | Place::Stdout | Place::Terminal => Leftover::NOTHING,
        }
    }
}

fn found(claim: Claim, file: Option<u64>) -> Found {
    Found {
        place: Place::Part(claim.part),
        partial: claim.partial,
        file,
        left_alone: claim.left_alone,
    }
}
