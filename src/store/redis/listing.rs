//! Lists the live tokens of all replicas, for operators.

use std::ops::ControlFlow;

use redis::aio::ConnectionLike;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::{Cmd, RedisResult, Value, from_redis_value};

use crate::store::redis::connection::RedisConnection;
use crate::store::redis::{RedisSession, StoreResult, parse, redis_command};
use crate::store::wire::StoredToken;
use crate::store::{Timestamp, TokenFilter, TokenListing, TokenSummary};

/// The number of keys that one SCAN visits, which blocks the server for less than a millisecond.
const PAGE: usize = 500;

/// Where to scan for keys.
pub(super) enum ScanTarget {
    /// The only server.
    Server,
    /// A primary of a cluster.
    Node { host: String, port: u16 },
}

impl RedisSession {
    /// Live tokens, whichever replica minted them.
    pub(super) async fn list(&self, filter: TokenFilter) -> StoreResult<TokenListing> {
        let mut listing = TokenListing::default();
        self.for_each_token(|stored, last_used| {
            if !self.is_live(&stored) || !filter.matches(&stored.token.user) {
                return ControlFlow::Continue(());
            }
            let mut token = TokenSummary {
                user: stored.token.user,
                groups: stored.token.groups,
                fingerprint: stored.id.fingerprint(),
                minted: stored.minted,
                expires: stored.expires,
                last_used,
            };
            // This replica may not have written the last use yet.
            if let Some(record) = self.context.memory.peek(&stored.id) {
                token.last_used = token.last_used.max(self.context.store_clock.timestamp(record.last_used()));
            }
            // SCAN may return the same key twice.
            if listing.tokens.last() != Some(&token) {
                listing.push(token, &filter);
            }
            if listing.truncated { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .await?;
        Ok(listing.into_sorted())
    }

    /// Calls `visit` with every token in the store, live or not, and its last use, some of them twice, until it breaks.
    pub(super) async fn for_each_token(
        &self,
        mut visit: impl FnMut(StoredToken, Timestamp) -> ControlFlow<()>,
    ) -> StoreResult<()> {
        let mut connection = self.connection()?;
        for target in scan_targets(&mut connection).await? {
            let mut cursor = "0".to_owned();
            loop {
                let pattern = self.redis_key("t:", "*");
                let scan = redis_command("SCAN", (&cursor, "MATCH", pattern, "COUNT", PAGE));
                let (next, keys): (String, Vec<String>) = parse(send_to(&mut connection, scan, &target).await?)?;
                if !keys.is_empty() {
                    let values = redis_command("MGET", &keys);
                    let values: Vec<Option<Vec<u8>>> = values.query_async(&mut connection).await?;
                    for (key, value) in keys.iter().zip(values) {
                        // The value is gone if the token has just expired, and cannot be opened if the token was
                        // revoked, or a different key made it.
                        let Some(value) = value else { continue };
                        let Some(stored) = self.unseal_token(key, &value) else { continue };
                        if visit(stored, RedisSession::last_used(&value)).is_break() {
                            return Ok(());
                        }
                    }
                }
                if next == "0" {
                    break;
                }
                cursor = next;
            }
        }
        Ok(())
    }
}

pub(super) async fn scan_targets(connection: &mut RedisConnection) -> StoreResult<Vec<ScanTarget>> {
    let RedisConnection::Cluster(cluster) = connection else { return Ok(vec![ScanTarget::Server]) };
    let slots = redis_command("CLUSTER", "SLOTS");
    let any_primary = RoutingInfo::SingleNode(SingleNodeRoutingInfo::RandomPrimary);
    let slots: Vec<Vec<Value>> = parse(cluster.route_command(slots, any_primary).await?.extract_error()?)?;
    let mut nodes: Vec<(String, u16)> = Vec::new();
    for range in slots {
        // The first slot, the last slot, the primary, then its replicas.
        let Some(Value::Array(primary)) = range.into_iter().nth(2) else { continue };
        let mut parts = primary.into_iter();
        if let (Some(host), Some(port)) = (parts.next(), parts.next())
            && let (Ok(host), Ok(port)) = (from_redis_value(host), from_redis_value(port))
        {
            nodes.push((host, port));
        }
    }
    nodes.sort();
    nodes.dedup();
    Ok(nodes.into_iter().map(|(host, port)| ScanTarget::Node { host, port }).collect())
}

pub(super) async fn send_to(connection: &mut RedisConnection, command: Cmd, target: &ScanTarget) -> RedisResult<Value> {
    let response = match (connection, target) {
        (RedisConnection::Cluster(cluster), ScanTarget::Node { host, port }) => {
            let node = SingleNodeRoutingInfo::ByAddress { host: host.clone(), port: *port };
            cluster.route_command(command, RoutingInfo::SingleNode(node)).await?
        }
        (connection, _) => connection.req_packed_command(&command).await?,
    };
    response.extract_error()
}
