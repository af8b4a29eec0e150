//! The old process: gives what it listens with, and leaves when what is running is complete.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use tokio::sync::oneshot;
use tokio::time::{Instant, Interval, interval_at, sleep_until};

use super::exchange::{Agreed, Conversation, Gifts, Taken, Unheard, meeting_point};
use crate::checkpoint::control::Control;
use crate::checkpoint::trust;
use crate::listeners::Listeners;
use crate::metrics::Metrics;
use crate::tcp::Doors;

/// How long a client has to ask for what it wanted when it made its connection, and how often it is looked whether anything
/// is running yet.
const PAUSE: Duration = Duration::from_secs(2);

/// How far a server is with being taken over from. If the process that has taken over ends, another one can.
#[derive(Debug, Default)]
pub(crate) struct Inheritance {
    /// What becomes of what somebody was given.
    offered: Option<oneshot::Receiver<Result<Taken, Unheard>>>,
    /// What is left to do since another process serves.
    rest: Option<Rest>,
}

#[derive(Debug)]
struct Rest {
    look: Interval,
    end: Instant,
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Another process serves from now on.
    TakenOver,
    /// It has not come to that.
    Kept,
    /// It is time to look what is running.
    Look,
    /// What is running has had its time.
    End,
}

impl Inheritance {
    /// SIGUSR2: gives what there is to whoever waits for it.
    pub(crate) fn offer(&mut self, control: &Control, servers: &Listeners, doors: &Doors) {
        let there = UnixStream::connect(meeting_point(control));
        let Some(there) = there.ok().filter(is_trusted) else {
            return tracing::info!("SIGUSR2 is for `mpq-serve handover`, and none waits for it");
        };
        // Who comes next is told so while this one is under way.
        let gifts = servers.hand_over().map_err(|why| why.to_string());
        let gifts = gifts.and_then(|servers| {
            let (tcp, metrics) = doors.share().map_err(|error| error.to_string())?;
            Ok(Gifts {
                servers,
                tcp,
                metrics,
            })
        });
        let (sender, outcome) = oneshot::channel();
        if gifts.is_ok() {
            self.offered = Some(outcome);
        }
        tokio::task::spawn_blocking(move || {
            let result = talk(there, gifts);
            if let Err(why) = &result {
                tracing::warn!("not handed over: {why}");
            }
            let _ = sender.send(result);
        });
    }

    /// What happens next.
    pub(crate) async fn next(&mut self) -> Event {
        let offered = async {
            match &mut self.offered {
                Some(outcome) => outcome.await,
                None => std::future::pending().await,
            }
        };
        let rest = async {
            let Some(rest) = &mut self.rest else {
                return std::future::pending().await;
            };
            tokio::select! {
                _ = rest.look.tick() => Event::Look,
                () = sleep_until(rest.end) => Event::End,
            }
        };
        let outcome = tokio::select! {
            outcome = offered => outcome,
            event = rest => return event,
        };
        self.offered = None;
        let Ok(Ok(taken)) = outcome else {
            return Event::Kept;
        };
        let pid = taken.pid;
        tracing::info!("process {pid} has taken over; what is running is finished");
        let now = Instant::now();
        self.rest = Some(Rest {
            look: interval_at(now + PAUSE, PAUSE),
            end: now + taken.drain,
        });
        Event::TakenOver
    }

    /// Whether another process serves.
    pub(crate) fn is_over(&self) -> bool {
        self.rest.is_some()
    }
}

/// Has the clients that are left come again, to the other process. Whether nothing is left to do here.
pub(crate) fn is_done(servers: &Listeners, metrics: &Metrics) -> bool {
    if servers.have_handed_over() {
        servers.dismiss();
    } else {
        // Nobody has what they would come to.
        servers.go_away();
    }
    metrics.running.get() == 0 && !servers.have_elders()
}

/// Only this user and root may have what there is.
fn is_trusted(there: &UnixStream) -> bool {
    let peer = socket_peercred(there);
    peer.is_ok_and(|peer| [0, trust::me()].contains(&peer.uid.as_raw()))
}

fn talk(there: UnixStream, gifts: Result<Gifts, String>) -> Result<Taken, Unheard> {
    let conversation = Conversation::new(there)?;
    match gifts {
        Ok(gifts) => conversation.give(&gifts)?,
        Err(why) => {
            conversation.refuse(why.clone())?;
            return Err(Unheard::Refused(why));
        }
    }
    let taken = conversation.hear()?;
    conversation.say(&Agreed {})?;
    Ok(taken)
}
