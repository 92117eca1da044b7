//! `-blockdev`: nodes that name each other, brought down to one node for each image.

use std::path::PathBuf;

use super::config::{BlockNode, BlockOrigin, Cache, DetectZeroes, ErrorAction, FileKind, Locking};
use super::drives::{
    AIO, DETECT_ZEROES, LOCKING, NATIVE_NEEDS_DIRECT, OTHER_FORMATS, UNMAP_NEEDS_DISCARD, check_node_name,
};
use super::keyval::{self, Grammar, Pairs};

/// Most nodes over each other in one option.
const MAX_DEPTH: usize = 8;

/// What any node has.
#[derive(Clone, Debug, Default)]
struct Common {
    direct: Option<bool>,
    no_flush: Option<bool>,
    read_only: Option<bool>,
    auto_read_only: Option<bool>,
    discard: Option<bool>,
    detect_zeroes: DetectZeroes,
    force_share: bool,
}

/// A file or device of the host.
#[derive(Clone, Debug)]
struct Protocol {
    kind: FileKind,
    filename: PathBuf,
    native: bool,
    locking: Locking,
}

#[derive(Clone, Debug)]
enum Body {
    Protocol(Protocol),
    /// `raw` over a node in the same option.
    Over(Box<Node>),
    /// `raw` over a node in another option.
    OverNamed(String),
}

/// One node as given.
#[derive(Clone, Debug)]
pub(super) struct Node {
    name: Option<String>,
    common: Common,
    body: Body,
}

impl Node {
    /// The names that this option gives to nodes.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.name.as_deref().into_iter().collect();
        if let Body::Over(inner) = &self.body {
            names.extend(inner.names());
        }
        names
    }

    /// The node that this one lies over.
    fn below(&self) -> Option<&str> {
        match &self.body {
            Body::Protocol(_) => None,
            Body::Over(inner) => inner.name.as_deref().or_else(|| inner.below()),
            Body::OverNamed(name) => Some(name),
        }
    }
}

/// Reads one `-blockdev` argument.
pub(super) fn blockdev(argument: &str) -> Result<Node, String> {
    let mut pairs = keyval::parse_or_json(argument, Grammar::Tree, "driver")?;
    let node = node(&mut pairs, "")?;
    if node.name.is_none() {
        return Err("'node-name' must be specified for the root node".to_owned());
    }
    Ok(node)
}

/// Reads the node whose keys all start with `at`.
fn node(pairs: &mut Pairs, at: &str) -> Result<Node, String> {
    let key = |key: &str| format!("{at}{key}");
    let driver =
        pairs.text(&key("driver"))?.ok_or_else(|| format!("Parameter '{}' is missing", key("driver")))?;
    let name = pairs.text(&key("node-name"))?;
    if let Some(name) = &name {
        check_node_name(name)?;
    }
    if pairs.has(&key("cache")) {
        return Err(format!("Invalid parameter type for '{}', expected: object", key("cache")));
    }
    let common = Common {
        direct: pairs.switch(&key("cache.direct"))?,
        no_flush: pairs.switch(&key("cache.no-flush"))?,
        read_only: pairs.switch(&key("read-only"))?,
        auto_read_only: pairs.switch(&key("auto-read-only"))?,
        discard: pairs.choice(&key("discard"), &[("ignore", false), ("unmap", true)])?,
        detect_zeroes: pairs.choice(&key("detect-zeroes"), DETECT_ZEROES)?.unwrap_or_default(),
        force_share: pairs.switch(&key("force-share"))?.unwrap_or(false),
    };
    if common.detect_zeroes == DetectZeroes::Unmap && common.discard != Some(true) {
        return Err(UNMAP_NEEDS_DISCARD.to_owned());
    }
    let body = match driver.as_str() {
        "raw" => raw(pairs, at)?,
        "file" => Body::Protocol(protocol(pairs, at, FileKind::Regular)?),
        "host_device" => Body::Protocol(protocol(pairs, at, FileKind::HostDevice)?),
        other if OTHER_FORMATS.contains(&other) => {
            return Err(format!("driver '{other}' is not supported, only raw, file and host_device"));
        }
        other => return Err(format!("Parameter '{}' does not accept value '{other}'", key("driver"))),
    };
    if let Some(key) = pairs.leftover() {
        return Err(format!("Parameter '{key}' is unexpected"));
    }
    Ok(Node { name, common, body })
}

fn raw(pairs: &mut Pairs, at: &str) -> Result<Body, String> {
    for key in ["offset", "size"] {
        if pairs.size(&format!("{at}{key}"), "size")?.unwrap_or(0) != 0 {
            return Err(format!("Parameter '{at}{key}' is not supported"));
        }
    }
    let file = format!("{at}file");
    if let Some(name) = pairs.text(&file)? {
        return Ok(Body::OverNamed(name));
    }
    let below = format!("{file}.");
    let mut nested = pairs.take_under(&below);
    if nested.leftover().is_none() {
        return Err(format!("Parameter '{file}' is missing"));
    }
    if below.matches("file.").count() > MAX_DEPTH {
        return Err(format!("more than {MAX_DEPTH} nodes over each other"));
    }
    Ok(Body::Over(Box::new(node(&mut nested, &below)?)))
}

fn protocol(pairs: &mut Pairs, at: &str, kind: FileKind) -> Result<Protocol, String> {
    let key = |key: &str| format!("{at}{key}");
    let filename =
        pairs.text(&key("filename"))?.ok_or_else(|| format!("Parameter '{}' is missing", key("filename")))?;
    if filename.is_empty() {
        return Err("The 'file' block driver requires a file name".to_owned());
    }
    let native = pairs.choice(&key("aio"), AIO)?.unwrap_or(false);
    let locking = pairs.choice(&key("locking"), LOCKING)?.unwrap_or_default();
    pairs.switch(&key("drop-cache"))?;
    pairs.unsigned(&key("aio-max-batch"), "integer")?;
    Ok(Protocol { kind, filename: PathBuf::from(filename), native, locking })
}

/// Brings `top`, one of `nodes`, down to what it is an image of.
pub(super) fn resolve(nodes: &[&Node], top: &Node) -> Result<BlockNode, String> {
    let mut cache = Cache::default();
    let mut common = top.common.clone();
    let mut at = top;
    // Each step goes to another option or down inside one: more steps than that are a circle.
    for _ in 0..=nodes.len().saturating_mul(MAX_DEPTH + 1) {
        match &at.body {
            Body::Over(inner) => {
                common = merge(&common, &inner.common, true);
                at = inner;
            }
            Body::OverNamed(name) => {
                let Some(below) = nodes.iter().find_map(|node| find(node, name)) else {
                    return Err(format!("Cannot find device='{name}' nor node-name='{name}'"));
                };
                common = merge(&common, &below.common, false);
                at = below;
            }
            Body::Protocol(protocol) => {
                cache.direct = common.direct.unwrap_or(false);
                cache.no_flush = common.no_flush.unwrap_or(false);
                if protocol.native && !cache.direct {
                    return Err(NATIVE_NEEDS_DIRECT.to_owned());
                }
                return Ok(BlockNode {
                    typed: String::new(),
                    name: top.name.clone().unwrap_or_default(),
                    origin: BlockOrigin::Blockdev,
                    filename: protocol.filename.clone(),
                    kind: protocol.kind,
                    cache,
                    read_only: common.read_only.unwrap_or(false),
                    auto_read_only: common.auto_read_only.unwrap_or(false),
                    discard: common.discard.unwrap_or(false),
                    detect_zeroes: common.detect_zeroes,
                    write_error: ErrorAction::Enospc,
                    read_error: ErrorAction::Report,
                    locking: if common.force_share { Locking::Off } else { protocol.locking },
                });
            }
        }
    }
    Err(format!("node '{}' lies over itself", top.name.as_deref().unwrap_or_default()))
}

fn find<'a>(node: &'a Node, name: &str) -> Option<&'a Node> {
    if node.name.as_deref() == Some(name) {
        return Some(node);
    }
    match &node.body {
        Body::Over(inner) => find(inner, name),
        _ => None,
    }
}

/// The options of a node and of the one under it taken together. One in the same option inherits
/// what it does not say itself.
fn merge(above: &Common, below: &Common, inherits: bool) -> Common {
    let cache = |above: Option<bool>, below: Option<bool>| if inherits { below.or(above) } else { below };
    let either = |above: Option<bool>, below: Option<bool>| Some(above == Some(true) || below == Some(true));
    Common {
        direct: cache(above.direct, below.direct),
        no_flush: cache(above.no_flush, below.no_flush),
        read_only: either(above.read_only, below.read_only),
        auto_read_only: either(above.auto_read_only, below.auto_read_only),
        // A guest's discard has to pass every node on its way down.
        discard: Some(above.discard == Some(true) && below.discard.unwrap_or(inherits)),
        detect_zeroes: match above.detect_zeroes {
            DetectZeroes::Off => below.detect_zeroes,
            set => set,
        },
        force_share: above.force_share || below.force_share,
    }
}

/// Whether another of `nodes` lies over one called `name`.
pub(super) fn user_of<'a>(nodes: &[&'a Node], name: &str) -> Option<&'a str> {
    nodes.iter().find(|node| node.below() == Some(name)).and_then(|node| node.name.as_deref())
}
