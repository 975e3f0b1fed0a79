//! Connections: how many a port has at once, and of one address; how long one may lie idle, and how much one may ask at the
//! same time.
//!
//! Idle is a connection on which no byte went in either direction. A peer that has gone without a word is noticed sooner,
//! by the kernel's own probes, which are no bytes here; a client that wants to keep a silent connection sends HTTP/2 pings.

mod turned_away;

use std::future::ready;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::{Instant, Sleep};
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpIncoming};

pub(crate) use self::turned_away::TurnedAway;
use crate::network;
use crate::shares::{Full, Share, Shares};

/// The most connections of a port of calls. Each costs a file descriptor, of which a process may have as many on most systems
/// unless it is told otherwise, and what its streams have sent and nobody has read.
const MOST_CONNECTIONS: usize = 1024;

/// The part of a port's connections that one address may have, unless it is this host's own. A host needs few: each carries
/// 256 calls at once, so that hundreds of processes behind one address still find room; and it takes four hosts that mean it
/// ill to fill a port.
const ONE_ADDRESS_OF: usize = 4;

/// How long a connection of calls may lie idle. Workers and producers say something every few seconds.
const IDLE: Duration = Duration::from_secs(30 * 60);

/// The most connections of the HTTP port: those who scrape metrics are few.
const MOST_HTTP_CONNECTIONS: usize = 64;

/// How long a connection of the HTTP port may lie idle: longer than Prometheus waits between two scrapes.
const HTTP_IDLE: Duration = Duration::from_secs(3 * 60);

/// The most calls of one connection at once; a client with more waits, or opens a second connection.
const MOST_STREAMS: u32 = 256;

/// The most bytes of a call's headers.
const MOST_HEADER_BYTES: u32 = 16 << 10;

/// A peer that answers nothing for this long is asked whether it is there...
const PROBE_AFTER: Duration = Duration::from_secs(60);

/// ...so often...
const PROBES: u32 = 3;

/// ...at this distance, and given up then.
const PROBE_EVERY: Duration = Duration::from_secs(10);

/// A gRPC server within its bounds, which closes the connections of clients that have gone.
pub(crate) fn server() -> Server {
    network::server().max_concurrent_streams(MOST_STREAMS).http2_max_header_list_size(MOST_HEADER_BYTES)
}

/// A port's connections.
pub(crate) fn incoming(
    listener: TcpListener,
    turned_away: &TurnedAway,
) -> impl Stream<Item = io::Result<Bounded<TcpStream>>> + Send + use<> {
    bounded(accepted(listener), Places::new(MOST_CONNECTIONS, IDLE, turned_away))
}

/// The HTTP port's connections.
pub(crate) fn http_incoming(
    listener: TcpListener,
    turned_away: &TurnedAway,
) -> impl Stream<Item = io::Result<Bounded<TcpStream>>> + Send + use<> {
    bounded(accepted(listener), Places::new(MOST_HTTP_CONNECTIONS, HTTP_IDLE, turned_away))
}

/// A Unix socket's connections, which are all of this host.
pub(crate) fn socket_incoming<S: Stream<Item = io::Result<UnixStream>> + Send>(
    incoming: S,
    turned_away: &TurnedAway,
) -> impl Stream<Item = io::Result<Bounded<UnixStream>>> + Send + use<S> {
    bounded(incoming, Places::new(MOST_CONNECTIONS, IDLE, turned_away))
}

/// Without delay: else an answer of more than one packet waits 40 ms for the caller's delayed acknowledgement.
fn accepted(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener)
        .with_nodelay(Some(true))
        .with_keepalive(Some(PROBE_AFTER))
        .with_keepalive_interval(Some(PROBE_EVERY))
        .with_keepalive_retries(Some(PROBES))
}

fn bounded<IO: OfHost + Send>(
    incoming: impl Stream<Item = io::Result<IO>> + Send,
    places: Places,
) -> impl Stream<Item = io::Result<Bounded<IO>>> + Send {
    incoming.filter_map(move |accepted| ready(accepted.map(|io| places.take(io)).transpose()))
}

/// What comes from a host.
pub(crate) trait OfHost {
    /// The host that it comes from, if that is another.
    fn host(&self) -> Option<IpAddr>;
}

impl OfHost for TcpStream {
    fn host(&self) -> Option<IpAddr> {
        // Of a connection that has gone meanwhile there is none, and it ends by itself.
        self.peer_addr().ok().and_then(|peer| host_of(peer.ip()))
    }
}

impl OfHost for UnixStream {
    fn host(&self) -> Option<IpAddr> {
        None
    }
}

impl<IO: OfHost> OfHost for Bounded<IO> {
    fn host(&self) -> Option<IpAddr> {
        self.io.host()
    }
}

/// The host of an address, unless it is this one. One that has an address of IPv6 has all that begin with the same 64 bits.
pub(crate) fn host_of(address: IpAddr) -> Option<IpAddr> {
    match address.to_canonical() {
        IpAddr::V4(address) if address.is_loopback() => None,
        IpAddr::V6(address) if address.is_loopback() => None,
        IpAddr::V6(address) => Some(IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & u128::from(u64::MAX) << 64))),
        address @ IpAddr::V4(_) => Some(address),
    }
}

/// The places of a port.
#[derive(Debug)]
struct Places {
    shares: Arc<Shares<IpAddr>>,
    idle: Duration,
    turned_away: TurnedAway,
}

impl Places {
    fn new(most: usize, idle: Duration, turned_away: &TurnedAway) -> Self {
        Self { shares: Shares::new(most, most / ONE_ADDRESS_OF), idle, turned_away: turned_away.clone() }
    }

    /// Gives a connection a place; without one it is closed at once, which its caller notices sooner than silence.
    fn take<IO: OfHost>(&self, io: IO) -> Option<Bounded<IO>> {
        let host = io.host();
        match self.shares.take(host.as_ref(), 1) {
            Ok(place) => {
                let timer = Box::pin(tokio::time::sleep(self.idle));
                Some(Bounded { io, _place: place, idle: self.idle, timer, active: false })
            }
            Err(full) => {
                self.turned_away.note(matches!(full, Full::Share { .. }), host, now());
                None
            }
        }
    }
}

/// A connection that holds a place, and ends when it lies idle.
#[derive(Debug)]
pub(crate) struct Bounded<IO> {
    io: IO,
    _place: Share<IpAddr>,
    idle: Duration,
    timer: Pin<Box<Sleep>>,
    /// Whether a byte went since the timer was set: to set it anew for each would cost more than to look when it rings.
    active: bool,
}

impl<IO> Bounded<IO> {
    /// Whether the connection has lain idle for as long as it may.
    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        while self.timer.as_mut().poll(context).is_ready() {
            if !self.active {
                return true;
            }
            self.active = false;
            let again = now() + self.idle;
            self.timer.as_mut().reset(again);
        }
        false
    }

    fn note(&mut self, written: &Poll<io::Result<usize>>) {
        self.active |= matches!(written, Poll::Ready(Ok(bytes)) if *bytes > 0);
    }
}

/// How long a connection lies idle is a span of real time, whatever time the project's clock shows.
fn now() -> Instant {
    Instant::now()
}

impl<IO: AsyncRead + Unpin> AsyncRead for Bounded<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        self.active |= buffer.filled().len() > before;
        match read {
            // To read nothing is what the end of a connection looks like.
            Poll::Pending if self.is_over(context) => Poll::Ready(Ok(())),
            read => read,
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Bounded<IO> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, parts);
        self.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

impl<IO: Connected> Connected for Bounded<IO> {
    type ConnectInfo = IO::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    impl OfHost for DuplexStream {
        fn host(&self) -> Option<IpAddr> {
            None
        }
    }

    /// A connection of some host.
    struct Of(&'static str);

    impl OfHost for Of {
        fn host(&self) -> Option<IpAddr> {
            host_of(self.0.parse().expect("an address"))
        }
    }

    fn places(most: usize, idle: Duration) -> Places {
        Places::new(most, idle, &TurnedAway::default())
    }

    fn connected(places: &Places) -> (DuplexStream, Option<Bounded<DuplexStream>>) {
        let (client, server) = duplex(64);
        (client, places.take(server))
    }

    #[tokio::test]
    async fn one_host_has_a_quarter_of_a_port_and_this_one_the_whole() {
        let places = places(8, IDLE);
        let one = [places.take(Of("192.0.2.1")), places.take(Of("::ffff:192.0.2.1"))];
        assert!(one.iter().all(Option::is_some) && places.take(Of("192.0.2.1")).is_none());
        assert_eq!(places.turned_away.counts(), [("port", 0), ("address", 1)]);
        // Whoever has one address of a network of IPv6 has as many as it likes.
        let other = [places.take(Of("2001:db8::1")), places.take(Of("2001:db8::2"))];
        assert!(other.iter().all(Option::is_some) && places.take(Of("2001:db8::ffff:0:0:3")).is_none());
        let own = ["127.0.0.1", "127.0.0.1", "::1", "127.0.0.1"].map(|own| places.take(Of(own)));
        assert!(own.iter().all(Option::is_some) && places.take(Of("127.0.0.1")).is_none());
        assert!(places.take(Of("192.0.2.9")).is_none());
        assert_eq!(places.turned_away.counts(), [("port", 2), ("address", 2)]);
        drop(one);
        assert!(places.take(Of("192.0.2.1")).is_some());
    }

    #[tokio::test]
    async fn a_connection_too_many_is_closed_and_its_place_is_free_again_when_another_ends() {
        let places = places(2, IDLE);
        let (_one, first) = connected(&places);
        let (_two, second) = connected(&places);
        assert!(first.is_some() && second.is_some());
        let (mut refused, none) = connected(&places);
        assert!(none.is_none());
        assert_eq!(refused.read(&mut [0; 8]).await.expect("the end"), 0);
        drop(first);
        assert!(connected(&places).1.is_some());
    }

    #[tokio::test]
    async fn an_idle_connection_ends_and_one_that_is_used_does_not() {
        let places = places(2, Duration::from_millis(200));
        let (_silent, idle) = connected(&places);
        let (mut client, used) = connected(&places);
        let (mut idle, mut used) = (idle.expect("a place"), used.expect("a place"));
        let talk = async {
            for _ in 0..12 {
                tokio::time::sleep(Duration::from_millis(50)).await;
                client.write_all(b"x").await.expect("open");
            }
            drop(client);
        };
        let listen = async {
            let mut heard = Vec::new();
            used.read_to_end(&mut heard).await.expect("readable");
            heard.len()
        };
        let (silence, ((), heard)) = tokio::join!(
            tokio::time::timeout(Duration::from_secs(60), async { idle.read(&mut [0; 8]).await }),
            async { tokio::join!(talk, listen) }
        );
        assert_eq!(silence.expect("ends by itself").expect("the end"), 0);
        assert_eq!(heard, 12, "it ended while it was used");
    }
}
