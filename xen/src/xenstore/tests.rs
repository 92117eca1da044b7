use std::io::{Read, Write};
use std::thread;

use super::*;

/// A request as the fake server sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Request {
    kind: u32,
    transaction: u32,
    payload: Vec<u8>,
}

/// Raw bytes of a message to the client.
fn message(kind: u32, request: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [kind, request, 0, payload.len() as u32] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(payload);
    bytes
}

fn event(path: &str, token: &str) -> Vec<u8> {
    message(wire::WATCH_EVENT, 0, format!("{path}\0{token}\0").as_bytes())
}

fn read_request(stream: &mut UnixStream) -> Option<(u32, Request)> {
    let mut header = [0; 16];
    stream.read_exact(&mut header).ok()?;
    let word = |index: usize| u32::from_ne_bytes(header[index * 4..][..4].try_into().unwrap());
    let mut payload = vec![0; word(3) as usize];
    stream.read_exact(&mut payload).ok()?;
    Some((word(1), Request { kind: word(0), transaction: word(2), payload }))
}

/// Runs `client` against a server that answers each request with the bytes `serve` returns for its number
/// and contents, and returns the requests it saw.
fn with_server(
    mut serve: impl FnMut(u32, &Request) -> Vec<u8> + Send,
    client: impl FnOnce(&mut Store),
) -> Vec<Request> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        let server = scope.spawn(move || {
            let mut seen = Vec::new();
            while let Some((id, request)) = read_request(&mut theirs) {
                let answer = serve(id, &request);
                seen.push(request);
                if answer.is_empty() || theirs.write_all(&answer).is_err() {
                    break;
                }
            }
            seen
        });
        let mut store = Store::from_fd(ours.into()).unwrap();
        client(&mut store);
        drop(store);
        server.join().unwrap()
    })
}

/// The ordinary answer to a request.
fn ok(id: u32, request: &Request) -> Vec<u8> {
    let payload: &[u8] = match request.kind {
        1 => b"vif\0vbd\0",
        2 => b"running",
        6 => b"77\0",
        10 => b"/local/domain/7\0",
        17 => b"T\0",
        _ => b"OK\0",
    };
    message(request.kind, id, payload)
}

fn request(kind: u32, transaction: u32, payload: &[u8]) -> Request {
    Request { kind, transaction, payload: payload.to_vec() }
}

#[test]
fn requests_and_replies() {
    let seen = with_server(ok, |store| {
        let domid = "7".parse().unwrap();
        assert_eq!(store.read("/a").unwrap(), b"running");
        assert_eq!(store.read_text("/a").unwrap().as_deref(), Some("running"));
        store.write("/a/b", "x\0y").unwrap();
        store.mkdir("/c").unwrap();
        store.rm("/c").unwrap();
        assert_eq!(store.directory("/d").unwrap(), ["vif", "vbd"]);
        store.watch("@releaseDomain", "t").unwrap();
        store.unwatch("@releaseDomain", "t").unwrap();
        assert_eq!(store.get_domain_path(domid).unwrap(), "/local/domain/7");
        assert!(store.is_domain_introduced(domid).unwrap());
    });
    let expected = [
        request(2, 0, b"/a\0"),
        request(2, 0, b"/a\0"),
        request(11, 0, b"/a/b\0x\0y"),
        request(12, 0, b"/c\0"),
        request(13, 0, b"/c\0"),
        request(1, 0, b"/d\0"),
        request(4, 0, b"@releaseDomain\0t\0"),
        request(5, 0, b"@releaseDomain\0t\0"),
        request(10, 0, b"7\0"),
        request(17, 0, b"7\0"),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn empty_values_and_directories() {
    let serve = |id, request: &Request| message(request.kind, id, b"");
    with_server(serve, |store| {
        assert_eq!(store.read("/a").unwrap(), b"");
        assert!(store.directory("/a").unwrap().is_empty());
    });
}

#[test]
fn error_names_become_errnos() {
    let names = [
        ("ENOENT", libc::ENOENT),
        ("EACCES", libc::EACCES),
        ("EEXIST", libc::EEXIST),
        ("E2BIG", libc::E2BIG),
        ("EAGAIN", libc::EAGAIN),
        ("EQUOTA", libc::EIO),
        ("", libc::EIO),
    ];
    for (name, errno) in names {
        let serve = |id, _: &Request| message(wire::ERROR, id, format!("{name}\0").as_bytes());
        with_server(serve, |store| {
            for _ in 0..2 {
                match store.read("/a/b") {
                    Err(StoreError::Refused { request: "XS_READ", path, source }) => {
                        assert_eq!((path.as_str(), source.raw_os_error()), ("/a/b", Some(errno)));
                    }
                    other => panic!("{other:?}"),
                }
            }
        });
    }
}

#[test]
fn a_missing_node() {
    let serve = |id, _: &Request| message(wire::ERROR, id, b"ENOENT\0");
    with_server(serve, |store| {
        let error = store.read("/a").unwrap_err();
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), "XS_READ(/a): No such file or directory");
        assert_eq!(store.read_text("/a").unwrap(), None);
    });
}

#[test]
fn transactions_carry_their_id_and_are_retried() {
    let mut ends = 0;
    let serve = |id, request: &Request| {
        if request.kind == 7 {
            ends += 1;
            if ends < 3 {
                return message(wire::ERROR, id, b"EAGAIN\0");
            }
        }
        ok(id, request)
    };
    let seen = with_server(serve, |store| {
        let value = store.transaction(|store| {
            assert!(matches!(store.transaction(|_| Ok(())), Err(StoreError::Nested)));
            store.write("/a", "b")?;
            store.read("/a")
        });
        assert_eq!(value.unwrap(), b"running");
        store.rm("/a").unwrap();
    });
    let round = || {
        vec![request(6, 0, b"\0"), request(11, 77, b"/a\0b"), request(2, 77, b"/a\0"), request(7, 77, b"T\0")]
    };
    assert_eq!(seen, [round(), round(), round(), vec![request(13, 0, b"/a\0")]].concat());
}

#[test]
fn failed_transactions_are_undone() {
    let serve = |id, request: &Request| match request.kind {
        2 => message(wire::ERROR, id, b"ENOENT\0"),
        _ => ok(id, request),
    };
    let seen = with_server(serve, |store| {
        assert!(store.transaction(|store| store.read("/a")).unwrap_err().is_not_found());
    });
    assert_eq!(seen, [request(6, 0, b"\0"), request(2, 77, b"/a\0"), request(7, 77, b"F\0")]);
}

#[test]
fn transactions_give_up() {
    let serve = |id, request: &Request| match request.kind {
        7 => message(wire::ERROR, id, b"EAGAIN\0"),
        _ => ok(id, request),
    };
    let seen = with_server(serve, |store| {
        let error = store.transaction(|_| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "XS_TRANSACTION_END(transaction): Resource temporarily unavailable");
    });
    assert_eq!(seen.len(), 2 * TRANSACTION_RETRIES as usize);
}

#[test]
fn events_between_replies_are_kept() {
    let serve = |id, request: &Request| {
        [event("/a/1", "t"), event("/a/2", "t"), event("/a/1", "t"), ok(id, request), event("/a/3", "u")]
            .concat()
    };
    with_server(serve, |store| {
        assert_eq!(store.read("/a").unwrap(), b"running");
        let expected = [("/a/1", "t"), ("/a/2", "t"), ("/a/3", "u")];
        for (path, token) in expected {
            let event = store.next_event().unwrap().unwrap();
            assert_eq!((event.path.as_str(), event.token.as_str()), (path, token));
        }
        assert_eq!(store.next_event().unwrap(), None);
    });
}

#[test]
fn messages_in_pieces() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut store = Store::from_fd(ours.into()).unwrap();
    for byte in event("/a", "t") {
        assert_eq!(store.next_event().unwrap(), None);
        theirs.write_all(&[byte]).unwrap();
    }
    assert_eq!(store.next_event().unwrap(), Some(WatchEvent { path: "/a".into(), token: "t".into() }));
}

#[test]
fn a_flood_of_events_becomes_one_a_watch() {
    let serve = |id, request: &Request| {
        let mut answer = ok(id, request);
        if request.kind == 2 {
            let flood = (0..EVENTS_MAX + 1).flat_map(|index| event(&format!("/a/{index}"), "t"));
            answer = flood.chain(answer).collect();
        }
        answer
    };
    with_server(serve, |store| {
        store.watch("/a", "t").unwrap();
        store.watch("/b", "u").unwrap();
        store.read("/x").unwrap();
        assert_eq!(store.next_event().unwrap(), Some(WatchEvent { path: "/a".into(), token: "t".into() }));
        assert_eq!(store.next_event().unwrap(), Some(WatchEvent { path: "/b".into(), token: "u".into() }));
        assert_eq!(store.next_event().unwrap(), None);
    });
}

#[test]
fn events_of_an_ended_watch_are_dropped() {
    let serve = |id, request: &Request| [event("/a", "t"), event("/b", "u"), ok(id, request)].concat();
    with_server(serve, |store| {
        store.watch("/a", "t").unwrap();
        store.watch("/b", "u").unwrap();
        store.unwatch("/a", "t").unwrap();
        assert_eq!(store.next_event().unwrap(), Some(WatchEvent { path: "/b".into(), token: "u".into() }));
        assert_eq!(store.next_event().unwrap(), None);
    });
}

/// After `answer` to a read, the error is `expected` and the connection stays unusable.
fn breaks(expected: &str, answer: fn(u32) -> Vec<u8>) {
    with_server(
        |id, _| answer(id),
        |store| {
            let error = store.read("/a").unwrap_err().to_string();
            assert_eq!(error, expected);
            let error = store.read("/a").unwrap_err().to_string();
            assert!(error.starts_with("the connection to xenstored failed"), "{error}");
            assert!(store.next_event().is_err());
        },
    );
}

#[test]
fn bad_replies_break_the_connection() {
    let broke = |what: &str| format!("xenstored broke the protocol: {what}");
    let closed = "the connection to xenstored failed: unexpected end of file";
    breaks(closed, |_| Vec::new());
    breaks(&broke("a reply to another request"), |id| message(2, id + 1, b"x"));
    breaks(&broke("a reply of another kind"), |id| message(1, id, b"x"));
    breaks(&broke("a message is too long"), |id| message(2, id, &[0; 4097]));
    breaks(&broke("a message is too long"), |_| vec![0xff; 16]);
    breaks(&broke("a string is malformed"), |id| message(wire::ERROR, id, b"E\0X\0"));
    breaks(&broke("a string is malformed"), |id| message(wire::ERROR, id, b"\xff\0"));
    breaks(&broke("a list does not end"), |_| message(wire::WATCH_EVENT, 0, b"/a\0t"));
    breaks(&broke("a watch event is malformed"), |_| message(wire::WATCH_EVENT, 0, b"/a\0"));
    breaks(&broke("a watch event is malformed"), |_| message(wire::WATCH_EVENT, 0, b"/a\0t\0u\0"));
    breaks(&broke("a watch event is malformed"), |_| message(wire::WATCH_EVENT, 0, b""));
}

#[test]
fn the_longest_reply_is_taken() {
    let serve = |id, request: &Request| message(request.kind, id, &[b'x'; 4096]);
    with_server(serve, |store| assert_eq!(store.read("/a").unwrap().len(), 4096));
}

#[test]
fn a_truncated_reply_ends_with_the_connection() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut store = Store::from_fd(ours.into()).unwrap();
    theirs.write_all(&message(2, 1, b"running")[..20]).unwrap();
    theirs.shutdown(std::net::Shutdown::Write).unwrap();
    let error = store.read("/a").unwrap_err().to_string();
    assert_eq!(error, "the connection to xenstored failed: unexpected end of file");
}

#[test]
fn a_reply_nobody_asked_for() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut store = Store::from_fd(ours.into()).unwrap();
    theirs.write_all(&message(2, 1, b"running")).unwrap();
    let error = store.next_event().unwrap_err().to_string();
    assert_eq!(error, "xenstored broke the protocol: a reply to no request");
}

#[test]
fn bad_booleans_and_ids() {
    let serve = |id, request: &Request| message(request.kind, id, b"maybe\0");
    let domid = "7".parse().unwrap();
    with_server(serve, |store| {
        assert!(matches!(store.is_domain_introduced(domid), Err(StoreError::Protocol(_))));
    });
    with_server(serve, |store| {
        assert!(matches!(store.transaction(|_| Ok(())), Err(StoreError::Protocol("no transaction id"))));
    });
}

#[test]
fn silence_times_out() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let mut store = Store::from_fd(ours.into()).unwrap();
    store.timeout = Duration::from_millis(10);
    assert!(matches!(store.read("/a"), Err(StoreError::Timeout)));
    assert!(matches!(store.read("/a"), Err(StoreError::Connection(_))));
}

#[test]
fn bad_requests_are_not_sent() {
    let seen = with_server(ok, |store| {
        assert_eq!(store.read("").unwrap_err().to_string(), "'' is no xenstore path");
        assert_eq!(store.read("/a\0b").unwrap_err().to_string(), "'/a\\0b' is no xenstore path");
        assert!(matches!(store.read(&"/".repeat(3073)), Err(StoreError::BadPath(_))));
        assert!(matches!(store.watch("/a", "t\0u"), Err(StoreError::BadPath(_))));
        assert!(matches!(store.write("/a", [0; 4094]), Err(StoreError::TooLong)));
        store.write("/a", [0; 4093]).unwrap();
    });
    assert_eq!(seen.len(), 1);
}

#[test]
fn a_plain_linux_has_no_xenstored() {
    if !SOCKETS.iter().chain([&DEVICE]).any(|path| std::path::Path::new(path).exists()) {
        let error = Store::open().unwrap_err().to_string();
        let expected = "cannot reach xenstored: cannot open /dev/xen/xenbus: No such file or directory \
                        (is this a Xen dom0?)";
        assert_eq!(error, expected);
    }
}
