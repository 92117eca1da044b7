//! Xenstore messages (xen/include/public/io/xs_wire.h): a header of four words, then a payload.

use crate::xenstore::StoreError;

/// Size of the header in bytes.
pub(super) const HEADER: usize = 16;
/// Most bytes in a payload (`XENSTORE_PAYLOAD_MAX`).
pub(super) const PAYLOAD_MAX: usize = 4096;

/// What a message is: a request and its reply have the same number (`enum xsd_sockmsg_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory = 1,
    Read = 2,
    Watch = 4,
    Unwatch = 5,
    TransactionStart = 6,
    TransactionEnd = 7,
    GetDomainPath = 10,
    Write = 11,
    Mkdir = 12,
    Rm = 13,
    IsDomainIntroduced = 17,
}

/// `XS_WATCH_EVENT`: comes unasked.
pub(super) const WATCH_EVENT: u32 = 15;
/// `XS_ERROR`: the reply to a request that failed.
pub(super) const ERROR: u32 = 16;

impl Kind {
    /// The request as its header spells it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Directory => "XS_DIRECTORY",
            Kind::Read => "XS_READ",
            Kind::Watch => "XS_WATCH",
            Kind::Unwatch => "XS_UNWATCH",
            Kind::TransactionStart => "XS_TRANSACTION_START",
            Kind::TransactionEnd => "XS_TRANSACTION_END",
            Kind::GetDomainPath => "XS_GET_DOMAIN_PATH",
            Kind::Write => "XS_WRITE",
            Kind::Mkdir => "XS_MKDIR",
            Kind::Rm => "XS_RM",
            Kind::IsDomainIntroduced => "XS_IS_DOMAIN_INTRODUCED",
        }
    }
}

/// A message that came in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: u32,
    pub(super) request: u32,
    pub(super) payload: Vec<u8>,
}

/// Builds a request. The payload is the parts, one after the other.
pub(super) fn encode(
    kind: Kind,
    request: u32,
    transaction: u32,
    parts: &[&[u8]],
) -> Result<Vec<u8>, StoreError> {
    let payload = parts.concat();
    let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= PAYLOAD_MAX);
    let words = [kind as u32, request, transaction, length.ok_or(StoreError::TooLong)?];
    Ok(words.into_iter().flat_map(u32::to_ne_bytes).chain(payload).collect())
}

/// Takes the first message off `bytes`, or nothing while it is not there whole.
pub(super) fn decode(bytes: &mut Vec<u8>) -> Result<Option<Message>, StoreError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let mut words = header.as_chunks().0.iter().map(|word| u32::from_ne_bytes(*word));
    let mut word = || words.next().unwrap_or_default();
    let (kind, request, _transaction, length) = (word(), word(), word(), word() as usize);
    if length > PAYLOAD_MAX {
        return Err(StoreError::Protocol("a message is too long"));
    }
    let Some(payload) = rest.get(..length) else {
        return Ok(None);
    };
    let message = Message { kind, request, payload: payload.to_vec() };
    bytes.drain(..HEADER.saturating_add(length));
    Ok(Some(message))
}

/// A payload that is one string: without its final NUL, and with none inside.
pub(super) fn text(payload: &[u8]) -> Result<&str, StoreError> {
    let text = payload.strip_suffix(&[0]).unwrap_or(payload);
    match std::str::from_utf8(text) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(StoreError::Protocol("a string is malformed")),
    }
}

/// A payload that is a list of strings, each with its NUL.
pub(super) fn list(payload: &[u8]) -> Result<Vec<String>, StoreError> {
    if payload.is_empty() {
        return Ok(Vec::new());
    }
    let Some(body) = payload.strip_suffix(&[0]) else {
        return Err(StoreError::Protocol("a list does not end"));
    };
    body.split(|byte| *byte == 0).map(|name| text(name).map(str::to_owned)).collect()
}

/// The errno for the name in an error reply (`xsd_errors`). `EIO` for one that is not known.
pub(super) fn errno(name: &str) -> i32 {
    match name {
        "EINVAL" => libc::EINVAL,
        "EACCES" => libc::EACCES,
        "EEXIST" => libc::EEXIST,
        "EISDIR" => libc::EISDIR,
        "ENOENT" => libc::ENOENT,
        "ENOMEM" => libc::ENOMEM,
        "ENOSPC" => libc::ENOSPC,
        "EIO" => libc::EIO,
        "ENOTEMPTY" => libc::ENOTEMPTY,
        "ENOSYS" => libc::ENOSYS,
        "EROFS" => libc::EROFS,
        "EBUSY" => libc::EBUSY,
        "EAGAIN" => libc::EAGAIN,
        "EISCONN" => libc::EISCONN,
        "E2BIG" => libc::E2BIG,
        "EPERM" => libc::EPERM,
        _ => libc::EIO,
    }
}
