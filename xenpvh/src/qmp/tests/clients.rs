use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::thread;

use proptest::prelude::*;

use super::super::stream::MAX_MESSAGE;
use super::*;
use crate::cli;

const STATUS: &str = r#"{"execute":"query-status"}"#;
const STATUS_ANSWER: &str = "{\"return\": {\"status\": \"prelaunch\", \"running\": false}}\r\n";

#[test]
fn a_command_may_come_in_pieces() {
    for cut in 1..STATUS.len() {
        let mut bench = Bench::new();
        let mut client = bench.negotiated();
        assert_eq!(bench.ask(&mut client, &STATUS[..cut]), "", "{cut}");
        assert_eq!(bench.ask(&mut client, &STATUS[cut..]), STATUS_ANSWER, "{cut}");
    }
}

#[test]
fn xenstat_sends_two_commands_in_one_breath_and_no_newline() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    let both = r#"{ "execute": "qmp_capabilities" }{ "execute": "query-blockstats" }"#;
    let heard = bench.ask(&mut client, both);
    let lines: Vec<_> = heard.lines().collect();
    assert_eq!((lines.len(), lines[1]), (3, r#"{"return": {}}"#));
    assert!(lines[2].contains(r#""rd_bytes": 4096"#), "{}", lines[2]);
}

#[test]
fn half_a_message_is_waited_for_and_forgotten_with_its_client() {
    let mut bench = Bench::new();
    let mut client = bench.negotiated();
    assert_eq!(bench.ask(&mut client, r#"{"execute":"#), "");
    drop(client);
    let mut next = bench.negotiated();
    assert_eq!(bench.ask(&mut next, STATUS), STATUS_ANSWER);
}

#[test]
fn a_client_that_closes_one_half_gets_its_answer() {
    let mut bench = Bench::new();
    let mut client = bench.negotiated();
    client.write_all(STATUS.as_bytes()).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(bench.hear(&mut client), STATUS_ANSWER);
}

#[test]
fn ten_megabytes_end_the_conversation() {
    let mut bench = Bench::new();
    let mut client = bench.negotiated();
    let mut sent = 0;
    let chunk = [b"\"".as_slice(), &[b'x'; 65536]].concat();
    let mut data = &chunk[..];
    while sent < 10 << 20 {
        match client.write(data) {
            Ok(length) => sent += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => bench.turn(),
            Err(error) => {
                assert!(
                    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset),
                    "{error}"
                );
                break;
            }
        }
        data = &chunk[1..];
    }
    assert!((MAX_MESSAGE..4 << 20).contains(&sent), "{sent}");
    let mut heard = Vec::new();
    let _ = client.read_to_end(&mut heard);
    assert!(String::from_utf8_lossy(&heard).contains("JSON token size limit exceeded"));
    let mut next = bench.negotiated();
    assert_eq!(bench.ask(&mut next, STATUS), STATUS_ANSWER);
}

#[test]
fn a_client_that_stops_reading_is_let_go() {
    let mut bench = Bench::new();
    let mut client = bench.negotiated();
    let commands = r#"{"execute":"query-commands"}"#.repeat(100);
    let mut gone = false;
    for _ in 0..10_000 {
        match client.write(commands.as_bytes()) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => {
                gone = true;
                break;
            }
        }
        bench.turn();
    }
    assert!(gone);
    let mut next = bench.negotiated();
    assert_eq!(bench.ask(&mut next, STATUS), STATUS_ANSWER);
}

#[test]
fn a_slow_reader_gets_everything() {
    let mut bench = Bench::new();
    let mut client = bench.negotiated();
    // More than a socket holds, less than is too much.
    let count = 250;
    client.write_all(r#"{"execute":"query-commands"}"#.repeat(count).as_bytes()).unwrap();
    bench.turn();
    let mut heard: Vec<u8> = Vec::new();
    let mut byte = [0; 1000];
    while heard.iter().filter(|byte| **byte == b'\n').count() < count {
        match client.read(&mut byte) {
            Ok(0) => panic!("let go"),
            Ok(length) => heard.extend(&byte[..length]),
            Err(_) => bench.turn(),
        }
    }
}

#[test]
fn a_hundred_clients_one_after_the_other() {
    let mut bench = Bench::new();
    for _ in 0..100 {
        let mut client = bench.negotiated();
        assert_eq!(bench.ask(&mut client, STATUS), STATUS_ANSWER);
    }
}

#[test]
fn one_client_at_a_time() {
    let mut bench = Bench::new();
    let mut first = bench.negotiated();
    let mut second = bench.connect();
    assert_eq!(bench.hear(&mut second), "");
    assert_eq!(bench.ask(&mut first, STATUS), STATUS_ANSWER);
    drop(first);
    assert!(bench.hear(&mut second).starts_with(r#"{"QMP": "#));
}

#[test]
fn events_reach_every_client_that_has_negotiated() {
    let directory = TempDir::new().unwrap();
    let paths = ["a", "b", "c"].map(|name| directory.path().join(name));
    let listeners = paths.iter().map(|path| (String::new(), Listener::bind(path).unwrap())).collect();
    let server = Server::new(listeners);
    let mut bench = Bench { server, ..Bench::new() };
    let mut clients = paths.each_ref().map(|path| {
        let client = UnixStream::connect(path).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    });
    for client in &mut clients[..2] {
        bench.ask(client, r#"{"execute":"qmp_capabilities"}"#);
    }
    bench.hear(&mut clients[2]);
    bench.server.event(&Event::shutdown(false, "host-signal"));
    let heard = clients.each_mut().map(|client| bench.hear(client));
    assert!(heard[0].contains(r#""event": "SHUTDOWN", "data": {"guest": false, "reason": "host-signal"}"#));
    assert!(heard[1].contains("SHUTDOWN"));
    assert_eq!(heard[2], "");
    // And those that come of a command, to the others too.
    let first = bench.ask(&mut clients[0], r#"{"execute":"cont"}"#);
    assert!(first.contains("RESUME") && first.ends_with("{\"return\": {}}\r\n"), "{first}");
    assert!(bench.hear(&mut clients[1]).contains("RESUME"));
}

#[test]
fn the_last_words_are_heard() {
    let mut bench = Bench::new();
    let mut client = bench.negotiated();
    client.write_all(br#"{"execute":"quit"}"#).unwrap();
    bench.turn();
    bench.server.finish();
    let Bench { server, .. } = bench;
    drop(server);
    let mut heard = String::new();
    client.read_to_string(&mut heard).unwrap();
    assert!(heard.ends_with("{\"return\": {}}\r\n"), "{heard}");
}

#[test]
fn a_socket_replaces_a_stale_one_and_goes_with_its_server() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("qmp");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let old = Listener::bind(&path).unwrap();
    let new = Listener::bind(&path).unwrap();
    // The file is the new one's now.
    drop(old);
    assert!(path.exists());
    drop(new);
    assert!(!path.exists());

    std::fs::write(&path, "precious").unwrap();
    let error = Listener::bind(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("Failed to bind socket to {}: Address already in use", path.display())
    );
    let nowhere = directory.path().join("x/y");
    let error = Listener::bind(&nowhere).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("Failed to bind socket to {}: No such file or directory", nowhere.display())
    );
}

#[test]
fn an_inherited_socket() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("qmp");
    let inherited = UnixListener::bind(&path).unwrap();
    let listener = Listener::inherit(inherited.as_raw_fd()).unwrap();
    assert_eq!(listener.filename(), format!("unix:{},server=on", path.display()));
    let mut bench = Bench { server: Server::new(vec![(String::new(), listener)]), ..Bench::new() };
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_nonblocking(true).unwrap();
    assert!(bench.hear(&mut client).starts_with(r#"{"QMP": "#));
    // It is not ours to remove.
    drop(bench);
    assert!(path.exists());

    let file = tempfile::tempfile().unwrap();
    for fd in [file.as_raw_fd(), 9999] {
        let error = Listener::inherit(fd).unwrap_err();
        assert_eq!(error.to_string(), format!("File descriptor '{fd}' is not a socket"));
    }
    let (connected, _other) = UnixStream::pair().unwrap();
    assert!(matches!(Listener::inherit(connected.as_raw_fd()), Err(SocketError::Listen(..))));
}

#[test]
fn a_command_line_becomes_a_server() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("qmp");
    let line = format!(
        "xenpvh -machine none -chardev socket,id=a,path={},server=on -mon a,mode=control,pretty=on \
         -chardev null,id=b -mon b,mode=control -chardev pty,id=c",
        path.display()
    );
    let config = match cli::parse(line.split(' ').map(Into::into)).unwrap() {
        cli::Outcome::Run(config) => config,
        cli::Outcome::Print(text) => panic!("{text}"),
    };
    // Without wait=off it starts with its first client.
    let caller = thread::spawn(move || {
        let start = Instant::now();
        loop {
            match UnixStream::connect(&path) {
                Ok(client) => return client,
                Err(error) => assert!(start.elapsed() < Duration::from_secs(10), "{error}"),
            }
            thread::sleep(Duration::from_millis(1));
        }
    });
    let opened = CharInfo { label: "c".to_owned(), filename: "pty:/dev/pts/9".to_owned() };
    let server = listen(&config, &[opened]).unwrap();
    let mut client = caller.join().unwrap();
    client.set_nonblocking(true).unwrap();
    let mut bench = Bench { server, ..Bench::new() };
    assert!(bench.hear(&mut client).starts_with("{\n    \"QMP\": {\n"));
    let chardevs = bench.ask(&mut client, r#"{"execute":"qmp_capabilities"}{"execute":"query-chardev"}"#);
    assert!(chardevs.contains("pty:/dev/pts/9") && chardevs.contains("\"filename\": \"null\""), "{chardevs}");

    let bad = cli::parse(
        [
            "x",
            "-M",
            "none",
            "-chardev",
            "socket,id=a,path=/nowhere/x,server=on,wait=off",
            "-mon",
            "a,mode=control",
        ]
        .map(Into::into),
    );
    let Ok(cli::Outcome::Run(config)) = bad else { panic!("{bad:?}") };
    assert_eq!(
        listen(&config, &[]).unwrap_err().to_string(),
        "x: -chardev socket,id=a,path=/nowhere/x,server=on,wait=off: \
         Failed to bind socket to /nowhere/x: No such file or directory"
    );
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    let pieces = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "'",
        "\\",
        " ",
        "\n",
        "null",
        "1",
        "-",
        "\"id\"",
        "\"execute\"",
        STATUS,
        r#"{"execute":"qmp_capabilities"}"#,
        r#"{"execute":"quit","id":"#,
        "\\u",
        "d800",
        "\u{7f}",
    ];
    prop_oneof![
        3 => prop::sample::select(pieces.to_vec()).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..8),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn nothing_that_a_client_sends_upsets_the_server(pieces in prop::collection::vec(piece(), 0..100)) {
        let mut bench = Bench::new();
        let mut client = bench.connect();
        for piece in &pieces {
            client.write_all(piece).unwrap();
            bench.turn();
        }
        for line in bench.hear(&mut client).lines() {
            prop_assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
        }
        drop(client);
        let mut next = bench.negotiated();
        prop_assert_eq!(bench.ask(&mut next, STATUS), STATUS_ANSWER);
    }
}
