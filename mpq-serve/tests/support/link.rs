//! A link that is slower than both of its ends.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::UdpSocket;

/// What the link carries in a millisecond, and what waits for it at the most, bytes.
const RATE: usize = 10_000;
const QUEUE: usize = 100_000;

/// A link to the server that is slower than both ends. Returns where it begins.
pub(crate) async fn link(server: SocketAddr) -> SocketAddr {
    let [front, back] = [(); 2].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    let begin = front.local_addr().unwrap();
    let [front, back] = [front, back].map(|socket| {
        socket.set_nonblocking(true).unwrap();
        UdpSocket::from_std(socket).unwrap()
    });
    tokio::spawn(async move {
        let (mut client, mut queue, mut queued) = (begin, VecDeque::new(), 0);
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        let (mut up, mut down) = ([0; 65536], [0; 65536]);
        loop {
            tokio::select! {
                Ok((length, from)) = front.recv_from(&mut up) => {
                    client = from;
                    let _ = back.send_to(&up[..length], server).await;
                }
                Ok(length) = back.recv(&mut down), if queued < QUEUE => {
                    queue.push_back(down[..length].to_vec());
                    queued += length;
                }
                _ = tick.tick() => {
                    let mut credit = RATE;
                    while let Some(first) = queue.pop_front_if(|first: &mut Vec<u8>| first.len() <= credit) {
                        credit -= first.len();
                        queued -= first.len();
                        let _ = front.send_to(&first, client).await;
                    }
                }
            }
        }
    });
    begin
}
