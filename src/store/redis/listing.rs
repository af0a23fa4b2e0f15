//! All live tokens, for operators.

use redis::aio::ConnectionLike;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::{Cmd, RedisResult, Value, cmd, from_redis_value};

use crate::store::redis::connection::RedisConnection;
use crate::store::redis::{RedisSession, StoreCommandResult};
use crate::store::{TokenFilter, TokenListing, TokenSummary};

/// So many keys are looked at in one step, which holds up the server for less than a millisecond.
const PAGE: usize = 500;

/// Where to look for keys: the one server, or one of a cluster.
enum ScanTarget {
    Server,
    Node { host: String, port: u16 },
}

impl RedisSession {
    /// Live tokens, whichever replica made them.
    pub(super) async fn list(&self, filter: TokenFilter) -> StoreCommandResult<TokenListing> {
        let mut connection = self.connection()?;
        let mut listing = TokenListing::default();
        for place in scan_targets(&mut connection).await? {
            let mut cursor = "0".to_owned();
            loop {
                let mut scan = cmd("SCAN");
                scan.arg((&cursor, "MATCH", self.redis_key("t:", "*"), "COUNT", PAGE));
                let (next, keys): (String, Vec<String>) =
                    from_redis_value(send_to(&mut connection, scan, &place).await?)
                        .map_err(redis::RedisError::from)?;
                self.add_page(&mut connection, &keys, &filter, &mut listing).await?;
                if next == "0" || listing.truncated {
                    break;
                }
                cursor = next;
            }
        }
        Ok(listing.into_sorted())
    }

    async fn add_page(
        &self,
        connection: &mut RedisConnection,
        keys: &[String],
        filter: &TokenFilter,
        listing: &mut TokenListing,
    ) -> StoreCommandResult<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let values: Vec<Option<Vec<u8>>> = cmd("MGET").arg(keys).query_async(connection).await?;
        for (key, value) in keys.iter().zip(values) {
            // What another salt sealed is not ours to tell of.
            let Some(value) = value else { continue };
            let Some(kept) = self.unseal_token(key, &value) else { continue };
            if !self.is_live(&kept) || !filter.matches(&kept.token.user) {
                continue;
            }
            let mut line = TokenSummary {
                user: kept.token.user,
                fingerprint: kept.id.fingerprint(),
                minted: kept.minted,
                expires: kept.expires,
                last_used: RedisSession::last_used(&value),
            };
            // What is known here may be newer.
            if let Some(here) = self.context.memory.peek(&kept.id) {
                line.last_used = line.last_used.max(self.context.store_clock.timestamp(here.last_used()));
            }
            // A step of the search may show the same key again.
            if listing.tokens.last() != Some(&line) {
                listing.push(line, filter);
            }
        }
        Ok(())
    }
}

async fn scan_targets(connection: &mut RedisConnection) -> StoreCommandResult<Vec<ScanTarget>> {
    let RedisConnection::Cluster(cluster) = connection else { return Ok(vec![ScanTarget::Server]) };
    let mut slots = cmd("CLUSTER");
    slots.arg("SLOTS");
    let anyone = RoutingInfo::SingleNode(SingleNodeRoutingInfo::RandomPrimary);
    let slots: Vec<Vec<Value>> =
        from_redis_value(cluster.route_command(slots, anyone).await?).map_err(redis::RedisError::from)?;
    let mut nodes: Vec<(String, u16)> = Vec::new();
    for range in slots {
        // First and last slot, then the primary server, then those that follow it.
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

async fn send_to(connection: &mut RedisConnection, command: Cmd, place: &ScanTarget) -> RedisResult<Value> {
    match (connection, place) {
        (RedisConnection::Cluster(cluster), ScanTarget::Node { host, port }) => {
            let node = SingleNodeRoutingInfo::ByAddress { host: host.clone(), port: *port };
            cluster.route_command(command, RoutingInfo::SingleNode(node)).await
        }
        (connection, _) => connection.req_packed_command(&command).await,
    }
}
