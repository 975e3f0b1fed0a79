//! Connections that notice silence. A peer that is gone says so only sometimes: a network that drops every packet looks
//! like a peer that thinks, and TCP alone gives up on it after a quarter of an hour. So both ends ask each other (HTTP/2
//! pings), and a connection whose other end does not answer is closed, with all that waits on it, and made anew.

use std::time::Duration;

use tonic::transport::{Endpoint, Server};

/// A connection that is not there by then is none. Across the world it takes a third of a second.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// How often a client asks whether its server is there, calls or not.
const ASK_SERVER_EVERY: Duration = Duration::from_secs(2);

/// How long a lookup's connection waits for that answer. A wrong guess costs a lookup that is asked again.
const LOOKUPS_WAIT: Duration = Duration::from_secs(3);

/// The same of other connections. A wrong guess breaks streams of pushes, and calls that are long on their way.
const OTHERS_WAIT: Duration = Duration::from_secs(20);

/// How often a server asks whether a client is there, and how long it waits. Clients built on gRPC's C++ core look at
/// their connections every five seconds when they have no calls.
const ASK_CLIENT_EVERY: Duration = Duration::from_secs(20);
const CLIENTS_WAIT: Duration = Duration::from_secs(20);

/// A client's end that is to notice within five seconds that its server has gone.
pub(crate) fn brisk(endpoint: Endpoint) -> Endpoint {
    asking(endpoint, LOOKUPS_WAIT)
}

/// A client's end whose calls may be long on their way.
pub(crate) fn patient(endpoint: Endpoint) -> Endpoint {
    asking(endpoint, OTHERS_WAIT)
}

fn asking(endpoint: Endpoint, wait: Duration) -> Endpoint {
    endpoint
        .tcp_nodelay(true)
        .tcp_keepalive(Some(ASK_CLIENT_EVERY))
        .connect_timeout(CONNECT_WITHIN)
        .http2_keep_alive_interval(ASK_SERVER_EVERY)
        .keep_alive_timeout(wait)
        .keep_alive_while_idle(true)
}

/// A server that closes the connections of clients that have gone.
pub(crate) fn server() -> Server {
    Server::builder().http2_keepalive_interval(Some(ASK_CLIENT_EVERY)).http2_keepalive_timeout(Some(CLIENTS_WAIT))
}
