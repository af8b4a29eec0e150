//! What a connection has cost, as lines of the log that programs can read: after the prefix `stats `
//! come `name=value` pairs, separated by spaces and in this order. New names may be added behind
//! them. Times are in seconds, sizes in bytes.
//!
//! First the whole connection: `connection`, the client's first address; `seconds` since the
//! handshake, without those in which the server was frozen; `paths` that were in use; `sent`,
//! `sent_packets`, `lost` and `lost_packets`, which are QUIC packets without UDP's headers, and
//! `received`, which is UDP payload, over all paths; `cpu` and `peak_memory` of the process so far,
//! which start anew when it is restored.
//!
//! Then each path: `connection`; `path`, its number; `remote`, the client's address on it; what it
//! `sent` and so on, as above; and at its end the smoothed `rtt`, the congestion `window` and the
//! number of `congestion_events`.

use std::net::SocketAddr;

use mpq_core::{PathStats, Traffic, Usage};

/// Logs the figures of the connection with the client that was first at `remote`.
pub fn log(remote: SocketAddr, traffic: &Traffic) {
    for line in lines(remote, traffic, &Usage::now()) {
        tracing::info!("{line}");
    }
}

fn lines(connection: SocketAddr, traffic: &Traffic, usage: &Usage) -> Vec<String> {
    let whole = format!(
        "stats connection={connection} seconds={:.6} paths={} {} cpu={:.6} peak_memory={}",
        traffic.duration.as_secs_f64(),
        traffic.paths.len(),
        carried(&traffic.total),
        usage.cpu.as_secs_f64(),
        usage.peak_memory,
    );
    let paths = traffic.paths.iter().map(|path| {
        format!(
            "stats connection={connection} path={} remote={} {} rtt={:.6} window={} \
             congestion_events={}",
            path.id,
            path.remote,
            carried(&path.carried),
            path.rtt.as_secs_f64(),
            path.window,
            path.congestion_events,
        )
    });
    std::iter::once(whole).chain(paths).collect()
}

fn carried(carried: &PathStats) -> String {
    format!(
        "sent={} sent_packets={} lost={} lost_packets={} received={}",
        carried.sent, carried.sent_packets, carried.lost, carried.lost_packets, carried.received,
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mpq_core::PathTraffic;

    use super::*;

    #[test]
    fn lines_are_stable() {
        let carried = PathStats {
            sent: 1000,
            sent_packets: 10,
            lost: 100,
            lost_packets: 1,
            received: 300,
        };
        let path = PathTraffic {
            id: 1.into(),
            remote: "[2001:db8::1]:7".parse().unwrap(),
            carried,
            rtt: Duration::from_millis(50),
            window: 12_000,
            congestion_events: 1,
        };
        let traffic = Traffic {
            duration: Duration::from_millis(1500),
            total: PathStats {
                sent: 1200,
                ..carried
            },
            paths: vec![path],
        };
        let usage = Usage {
            cpu: Duration::from_micros(20),
            peak_memory: 4096,
        };
        assert_eq!(
            lines("192.0.2.1:5".parse().unwrap(), &traffic, &usage),
            [
                "stats connection=192.0.2.1:5 seconds=1.500000 paths=1 sent=1200 sent_packets=10 \
                 lost=100 lost_packets=1 received=300 cpu=0.000020 peak_memory=4096",
                "stats connection=192.0.2.1:5 path=1 remote=[2001:db8::1]:7 sent=1000 \
                 sent_packets=10 lost=100 lost_packets=1 received=300 rtt=0.050000 window=12000 \
                 congestion_events=1",
            ]
        );
    }
}
