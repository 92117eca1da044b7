//! What a xenstored could answer.

use std::io::Write;
use std::os::unix::net::UnixStream;

use arbitrary::{Arbitrary, Unstructured};
use xen::{Store, StoreError};

/// More than this may wait at once for a xenstored.
const EVENTS_MAX: usize = 1024;
/// Bytes that a socket has room for in any case.
const ROOM: usize = 64 << 10;

#[derive(Arbitrary, Debug)]
struct Input {
    calls: Vec<Call>,
    answers: Vec<Answer>,
    rest: Vec<u8>,
}

#[derive(Arbitrary, Clone, Debug)]
enum Call {
    Read(Path),
    Text(Path),
    Write(Path, Vec<u8>),
    Mkdir(Path),
    Remove(Path),
    Directory(Path),
    Watch(Path, Path),
    Unwatch(Path, Path),
    DomainPath,
    IsIntroduced,
    Transaction(Path),
    Event,
}

#[derive(Arbitrary, Clone, Debug)]
enum Path {
    A,
    B,
    Any(String),
}

impl Path {
    fn get(&self) -> &str {
        match self {
            Path::A => "/a",
            Path::B => "/b/c",
            Path::Any(path) => path,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Answer {
    /// To the next request, of its own kind.
    Good(Payload),
    Kind(u8, Payload),
    Error(Errno),
    Event(Path, Path),
    Raw {
        kind: u32,
        request: u32,
        length: Option<u16>,
        payload: Vec<u8>,
    },
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum Payload {
    Ok,
    True,
    Number(u8),
    List(Vec<Path>),
    Any(Vec<u8>),
}

impl Payload {
    fn get(&self) -> Vec<u8> {
        match self {
            Payload::Ok => b"OK\0".to_vec(),
            Payload::True => b"T\0".to_vec(),
            Payload::Number(number) => format!("{number}\0").into_bytes(),
            Payload::List(names) => {
                names.iter().flat_map(|name| [name.get(), "\0"].concat().into_bytes()).collect()
            }
            Payload::Any(bytes) => bytes.clone(),
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Errno {
    NotFound,
    Again,
    Exists,
    Other([u8; 3]),
}

impl Errno {
    fn get(self) -> Vec<u8> {
        match self {
            Errno::NotFound => b"ENOENT\0".to_vec(),
            Errno::Again => b"EAGAIN\0".to_vec(),
            Errno::Exists => b"EEXIST\0".to_vec(),
            Errno::Other(bytes) => bytes.to_vec(),
        }
    }
}

/// The requests that the calls make, one after the other, as long as nothing fails.
fn kinds(calls: &[Call]) -> Vec<u32> {
    let kinds = calls.iter().flat_map(|call| match call {
        Call::Read(_) | Call::Text(_) => vec![2],
        Call::Write(..) => vec![11],
        Call::Mkdir(_) => vec![12],
        Call::Remove(_) => vec![13],
        Call::Directory(_) => vec![1],
        Call::Watch(..) => vec![4],
        Call::Unwatch(..) => vec![5],
        Call::DomainPath => vec![10],
        Call::IsIntroduced => vec![17],
        Call::Transaction(_) => vec![6, 2, 11, 7],
        Call::Event => vec![],
    });
    kinds.collect()
}

/// Makes calls on a connection where the answers wait already.
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let kinds = kinds(&input.calls);
    let mut stream = Vec::new();
    let mut answered = 0;
    for answer in &input.answers {
        let next = || (kinds.get(answered).copied().unwrap_or(2), answered as u32 + 1);
        let (kind, request, length, payload) = match answer {
            Answer::Good(payload) => {
                let (kind, request) = next();
                answered += 1;
                (kind, request, None, payload.get())
            }
            Answer::Kind(kind, payload) => ((*kind).into(), next().1, None, payload.get()),
            Answer::Error(errno) => {
                let (_, request) = next();
                answered += 1;
                (16, request, None, errno.get())
            }
            Answer::Event(path, token) => {
                (15, 0, None, format!("{}\0{}\0", path.get(), token.get()).into_bytes())
            }
            Answer::Raw { kind, request, length, payload } => (*kind, *request, *length, payload.clone()),
            Answer::Bytes(bytes) => {
                stream.extend(bytes);
                continue;
            }
        };
        let length = length.map_or(payload.len() as u32, u32::from);
        for word in [kind, request, 0, length] {
            stream.extend(word.to_ne_bytes());
        }
        stream.extend(payload);
    }
    stream.extend(&input.rest);
    stream.truncate(ROOM);
    let (ours, mut theirs) = UnixStream::pair().expect("a connection");
    theirs.write_all(&stream).expect("room for the answers");
    // Nothing comes after them, so that nobody waits.
    theirs.shutdown(std::net::Shutdown::Write).expect("an end");
    let mut store = Store::from_fd(ours.into()).expect("a client");
    let mut broken = false;
    for call in input.calls.iter().take(200) {
        match play(&mut store, call) {
            Ok(()) | Err(StoreError::Refused { .. } | StoreError::BadPath(_) | StoreError::TooLong) => {}
            Err(StoreError::Nested) => panic!("nobody nests"),
            Err(StoreError::Timeout) => panic!("waited for nothing"),
            Err(error) => {
                assert!(!error.to_string().is_empty());
                broken = true;
            }
        }
        // Once broken, always broken.
        assert!(!broken || store.read("/a").is_err());
        if broken {
            assert!(matches!(store.read("/a"), Err(StoreError::Connection(_))));
        }
    }
    let mut events = 0;
    while let Ok(Some(event)) = store.next_event() {
        assert!(!event.path.contains('\0') && !event.token.contains('\0'));
        events += 1;
        assert!(events <= 2 * EVENTS_MAX, "events pile up");
    }
}

fn play(store: &mut Store, call: &Call) -> Result<(), StoreError> {
    match call {
        Call::Read(path) => store.read(path.get()).map(drop),
        Call::Text(path) => store.read_text(path.get()).map(drop),
        Call::Write(path, value) => store.write(path.get(), value),
        Call::Mkdir(path) => store.mkdir(path.get()),
        Call::Remove(path) => store.rm(path.get()),
        Call::Directory(path) => store.directory(path.get()).map(drop),
        Call::Watch(path, token) => store.watch(path.get(), token.get()),
        Call::Unwatch(path, token) => store.unwatch(path.get(), token.get()),
        Call::DomainPath => {
            let path = store.get_domain_path("7".parse().expect("a domain id"))?;
            assert!(!path.contains('\0'));
            Ok(())
        }
        Call::IsIntroduced => store.is_domain_introduced("7".parse().expect("a domain id")).map(drop),
        Call::Transaction(path) => store.transaction(|store| {
            let old = store.read(path.get())?;
            store.write(path.get(), old)
        }),
        Call::Event => store.next_event().map(drop),
    }
}
