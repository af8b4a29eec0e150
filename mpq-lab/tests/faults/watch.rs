//! Who answers at A and at B, asked all the time without any state there.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

/// Between two questions.
const INTERVAL: Duration = Duration::from_millis(10);
/// For an answer.
const PATIENCE: Duration = Duration::from_millis(100);
/// What may open a connection has at least so many bytes (RFC 9000 §14.1).
const PROBE_SIZE: usize = 1200;
/// A version that no server has, so that it says which it has (RFC 9000 §15).
const VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];

/// Asks in the background.
pub(crate) struct Watch {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<usize>>>,
}

impl Watch {
    pub(crate) fn start(places: [SocketAddr; 2]) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let is_over = ended.clone();
        let thread = thread::spawn(move || {
            let mut seen = Vec::new();
            for number in 0_u64.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                let place = number as usize % places.len();
                if answers(places[place], number) && seen.last() != Some(&place) {
                    seen.push(place);
                }
                sleep(INTERVAL);
            }
            seen
        });
        Self {
            ended,
            thread: Some(thread),
        }
    }

    /// Which of them have answered, one after the other. If both did at once they alternate.
    pub(crate) fn end(mut self) -> Vec<usize> {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Whether a QUIC server answers there, to this question and no other.
fn answers(place: SocketAddr, number: u64) -> bool {
    let ask = || {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(place)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let id = number.to_be_bytes();
        let length = [id.len() as u8];
        let mut probe = [&[0xc0], &VERSION[..], &length, &id, &length, &id].concat();
        // The answer has no version, and the ids exchanged (RFC 8999 §6).
        let expected = [&[0; 4], &length[..], &id].concat();
        probe.resize(PROBE_SIZE, 0);
        socket.send(&probe)?;
        let mut answer = [0; PROBE_SIZE];
        loop {
            let received = socket.recv(&mut answer)?;
            if received > expected.len() && answer[1..].starts_with(&expected) {
                return Ok(());
            }
        }
    };
    match ask() {
        Ok(()) => true,
        Err(error) => {
            let error: std::io::Error = error;
            let is_silence = [
                ErrorKind::ConnectionRefused,
                ErrorKind::WouldBlock,
                ErrorKind::TimedOut,
            ];
            assert!(is_silence.contains(&error.kind()), "{error}");
            false
        }
    }
}
