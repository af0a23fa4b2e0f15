//! All live tokens, for operators.

use redis::aio::ConnectionLike;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::{Cmd, RedisResult, Value, cmd, from_redis_value};

use crate::store::redis::connection::Connection;
use crate::store::redis::{Outcome, Session};
use crate::store::{Filter, Listing, TokenLine};

/// So many keys are looked at in one step, which holds up the server for less than a millisecond.
const PAGE: usize = 500;

/// Where to look for keys: the one server, or one of a cluster.
enum Place {
    Everywhere,
    Node { host: String, port: u16 },
}

impl Session {
    /// Live tokens, whichever replica made them.
    pub(super) async fn list(&self, filter: Filter) -> Outcome<Listing> {
        let mut connection = self.connection()?;
        let mut listing = Listing::default();
        for place in places(&mut connection).await? {
            let mut cursor = "0".to_owned();
            loop {
                let mut scan = cmd("SCAN");
                scan.arg((&cursor, "MATCH", self.key("t:", "*"), "COUNT", PAGE));
                let (next, keys): (String, Vec<String>) =
                    from_redis_value(send(&mut connection, scan, &place).await?)
                        .map_err(redis::RedisError::from)?;
                self.add_those(&mut connection, &keys, &filter, &mut listing).await?;
                if next == "0" || listing.cut {
                    break;
                }
                cursor = next;
            }
        }
        Ok(listing.sorted())
    }

    async fn add_those(
        &self,
        connection: &mut Connection,
        keys: &[String],
        filter: &Filter,
        listing: &mut Listing,
    ) -> Outcome<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let values: Vec<Option<Vec<u8>>> = cmd("MGET").arg(keys).query_async(connection).await?;
        for (key, value) in keys.iter().zip(values) {
            // What another salt sealed is not ours to tell of.
            let Some(value) = value else { continue };
            let Some(kept) = self.open_token(key, &value) else { continue };
            if !self.lives(&kept) || !filter.wants(&kept.token.user) {
                continue;
            }
            let mut line = TokenLine {
                user: kept.token.user,
                fingerprint: kept.id.fingerprint(),
                minted: kept.minted,
                expires: kept.expires,
                last_used: Session::last_used(&value),
            };
            // What is known here may be newer.
            if let Some(here) = self.shared.memory.peek(&kept.id) {
                line.last_used = line.last_used.max(self.shared.calendar.stamp(here.last_used()));
            }
            // A step of the search may show the same key again.
            if listing.tokens.last() != Some(&line) {
                listing.add(line, filter);
            }
        }
        Ok(())
    }
}

async fn places(connection: &mut Connection) -> Outcome<Vec<Place>> {
    let Connection::Cluster(cluster) = connection else { return Ok(vec![Place::Everywhere]) };
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
    Ok(nodes.into_iter().map(|(host, port)| Place::Node { host, port }).collect())
}

async fn send(connection: &mut Connection, command: Cmd, place: &Place) -> RedisResult<Value> {
    match (connection, place) {
        (Connection::Cluster(cluster), Place::Node { host, port }) => {
            let node = SingleNodeRoutingInfo::ByAddress { host: host.clone(), port: *port };
            cluster.route_command(command, RoutingInfo::SingleNode(node)).await
        }
        (connection, _) => connection.req_packed_command(&command).await,
    }
}
