//! Clients whose bytes are meant to do harm.

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use quinn::{Connection, SendStream, VarInt};
use support::{Answer, Client, Server, request, start};

const LIMIT: Duration = Duration::from_secs(30);
const SIZE: u64 = 300_000;

/// What such frames are said to have, bytes.
const ENDLESS: u64 = 200 << 20;
/// What a server may need with them, kB.
const MEMORY: u64 = 64 << 10;
/// Codes of RFC 9114 §8.1.
const STREAM_CREATION_ERROR: VarInt = VarInt::from_u32(0x103);
const EXCESSIVE_LOAD: VarInt = VarInt::from_u32(0x107);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_of_more_fields_than_fit_costs_its_request_only() {
    let work = async {
        let (server, address) = start(&["--random", &SIZE.to_string()]);
        let mut client = Client::connect(address).await;
        // One field counts as much as its bytes, and 32 (RFC 9114 §4.2.2); more than 24,576 do not fit into what
        // holds them.
        for (fields, is_taken) in [
            (1_000, true),
            (2_000, false),
            (25_000, false),
            (60_000, false),
        ] {
            let mut answer = client.ask(&vec![("a", "b"); fields]).await;
            (&mut answer.end).await.unwrap().unwrap();
            match is_taken {
                true => assert!(answer.received() > SIZE, "{fields}"),
                false => assert!(answer.refuses(), "{fields}"),
            }
        }
        no_harm_is_done(&server, client).await;
    };
    tokio::time::timeout(2 * LIMIT, work).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_without_end_cost_no_memory() {
    let work = async {
        let (server, address) = start(&["--random", &SIZE.to_string()]);
        let mut client = Client::connect(address).await;
        client.ask(&[]).await.end.await.unwrap().unwrap();
        let before = server.peak_memory();

        // A frame that nobody knows is none, however large.
        let (mut send, receive) = client.connection.open_bi().await.unwrap();
        send_endlessly(&mut send, 0x21).await.unwrap();
        send.write_all(&request(&[])).await.unwrap();
        send.finish().unwrap();
        let answer = Answer::read(receive);
        answer.end.await.unwrap().unwrap();
        send_endlessly(&mut client.control, 0x21).await.unwrap();

        // A header is refused as soon as its size is known.
        let (mut send, receive) = client.connection.open_bi().await.unwrap();
        let _ = send_endlessly(&mut send, 0x01).await;
        let mut answer = Answer::read(receive);
        (&mut answer.end).await.unwrap().unwrap();
        assert!(answer.refuses());
        // And others that would have to be held until they are complete; of these there is none on a request.
        let (mut send, _receive) = client.connection.open_bi().await.unwrap();
        let _ = send_endlessly(&mut send, 0x04).await;
        assert_eq!(send.stopped().await, Ok(Some(EXCESSIVE_LOAD)));

        // A stream that nobody knows is not wanted, and nobody reads QPACK's, with what is not allowed there.
        let mut send = client.connection.open_uni().await.unwrap();
        let _ = send_endlessly(&mut send, 0x21).await;
        assert_eq!(send.stopped().await, Ok(Some(STREAM_CREATION_ERROR)));
        let mut unread = Vec::new();
        for kind in [0x02, 0x03] {
            let mut send = client.connection.open_uni().await.unwrap();
            let sending = async move { send_endlessly(&mut send, kind).await };
            unread.push(tokio::spawn(sending));
        }
        // As many unfinished headers as there may be.
        let mut unfinished = Vec::new();
        for _ in 0..90 {
            let (mut send, receive) = client.connection.open_bi().await.unwrap();
            send.write_all(&[0x01, 0x80, 0, 0xff, 0xff]).await.unwrap();
            send.write_all(&[0; 0xfffe]).await.unwrap();
            unfinished.push((send, receive));
        }
        client.ask(&[]).await.end.await.unwrap().unwrap();

        // The control stream cannot be given up alone.
        for kind in [0x04, 0x07, 0x0d] {
            assert_eq!(closed_for(address, kind).await, EXCESSIVE_LOAD, "{kind:#x}");
        }
        let memory = server.peak_memory();
        println!("memory: {before} kB before, {memory} kB at the most; {MEMORY} kB are allowed");
        assert!(memory < MEMORY, "{memory} kB");
        unread
            .iter()
            .for_each(|sending| assert!(!sending.is_finished()));
        unread.iter().for_each(|sending| sending.abort());
        no_harm_is_done(&server, client).await;
    };
    tokio::time::timeout(2 * LIMIT, work).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_that_nobody_reads_cost_little_memory() {
    const READERS: usize = 20;
    const RESPONSES: usize = 90;
    /// Of each response a client takes this much, bytes.
    const WINDOW: VarInt = VarInt::from_u32(16 << 10);
    /// Whole pieces of them would be 236 MB.
    const MEMORY: u64 = 128 << 10;
    let work = async {
        let (server, address) = start(&["--random", "10M"]);
        let mut client = Client::connect(address).await;
        let before = server.peak_memory();
        let mut unread = Vec::new();
        for _ in 0..READERS {
            let connection = support::connect_for(address, "h3", WINDOW).await.unwrap();
            for _ in 0..RESPONSES {
                let (mut send, mut receive) = connection.open_bi().await.unwrap();
                send.write_all(&request(&[])).await.unwrap();
                send.finish().unwrap();
                // The server has begun, with a piece of it.
                receive.read(&mut [0; 1]).await.unwrap().unwrap();
                unread.push(receive);
            }
        }
        // Somebody who reads is served.
        client.ask(&[]).await.end.await.unwrap().unwrap();
        let memory = server.peak_memory();
        println!("memory: {before} kB before, {memory} kB at the most; {MEMORY} kB are allowed");
        assert!(memory < MEMORY, "{memory} kB");
        no_harm_is_done(&server, client).await;
    };
    tokio::time::timeout(2 * LIMIT, work).await.unwrap();
}

/// Sends a frame of this type, which is large.
async fn send_endlessly(stream: &mut SendStream, kind: u8) -> Result<(), quinn::WriteError> {
    stream.write_all(&[kind]).await?;
    stream
        .write_all(&(0b11 << 62 | ENDLESS).to_be_bytes())
        .await?;
    let piece = vec![0; 1 << 20];
    for _ in 0..ENDLESS >> 20 {
        stream.write_all(&piece).await?;
    }
    Ok(())
}

/// Why a connection ends with such a frame on its control stream.
async fn closed_for(address: SocketAddr, kind: u8) -> VarInt {
    let connection: Connection = support::connect(address).await.unwrap();
    let mut control = connection.open_uni().await.unwrap();
    control.write_all(&[0x00]).await.unwrap();
    if kind != 0x04 {
        control.write_all(&[0x04, 0x00]).await.unwrap();
    }
    let _ = send_endlessly(&mut control, kind).await;
    match connection.closed().await {
        quinn::ConnectionError::ApplicationClosed(close) => close.error_code,
        error => panic!("{error}"),
    }
}

/// Somebody is served as ever, and nothing has panicked.
async fn no_harm_is_done(server: &Server, mut client: Client) {
    let good = client.ask(&[]).await;
    good.end.await.unwrap().unwrap();
    client.connection.close(VarInt::from_u32(0x100), b"");
    server.tell(Signal::SIGTERM);
    let said: Vec<_> = server.log.iter().collect();
    assert!(!said.iter().any(|line| line.contains("panic")), "{said:#?}");
}
