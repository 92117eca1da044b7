use serde_json::json;

use super::super::query;
use super::*;

/// What a fresh client that has negotiated hears for each message, without the ends of lines.
fn dialogue(table: &[(&str, &str)]) {
    let mut bench = Bench::new();
    let mut client = bench.negotiated();
    for (message, answer) in table {
        let heard = bench.ask(&mut client, message);
        assert_eq!(heard.trim_end_matches("\r\n").replace("\r\n", "\n"), *answer, "{message}");
        assert!(heard.is_empty() || heard.ends_with("\r\n"), "{message}");
    }
}

fn error(class: &str, desc: &str) -> String {
    format!(r#"{{"error": {{"class": "{class}", "desc": "{desc}"}}}}"#)
}

fn generic(desc: &str) -> String {
    error("GenericError", desc)
}

#[test]
fn the_greeting() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    let expected = format!(
        "{{\"QMP\": {{\"version\": {{\"qemu\": {{\"micro\": 2, \"minor\": 0, \"major\": 10}}, \
         \"package\": \"{}\"}}, \"capabilities\": []}}}}\r\n",
        query::package()
    );
    assert_eq!(bench.hear(&mut client), expected);
}

#[test]
fn negotiation() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    bench.hear(&mut client);
    for (message, answer) in [
        (
            r#"{"execute":"query-status"}"#,
            error("CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'"),
        ),
        (
            r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}"#,
            generic("Parameter 'enable' does not accept value 'oob'"),
        ),
        (r#"{"execute":"qmp_capabilities","arguments":{"foo":1}}"#, generic("Parameter 'foo' is unexpected")),
        (
            r#"{"execute":"qmp_capabilities","arguments":{"enable":[]},"id":2020372736}"#,
            r#"{"return": {}, "id": 2020372736}"#.to_owned(),
        ),
        (
            r#"{"execute":"qmp_capabilities"}"#,
            error("CommandNotFound", "Capabilities negotiation is already complete, command ignored"),
        ),
    ] {
        assert_eq!(bench.ask(&mut client, message), format!("{answer}\r\n"), "{message}");
    }
}

#[test]
fn ids_of_every_type() {
    for id in ["1", "-3.5", "\"x\"", "true", "null", "[1, {\"a\": null}]", "{\"a\": [2]}"] {
        let ok = format!(r#"{{"return": {{"status": "prelaunch", "running": false}}, "id": {id}}}"#);
        let bad = format!(
            r#"{{"id": {id}, "error": {{"class": "CommandNotFound", "desc": "The command x has not been found"}}}}"#
        );
        dialogue(&[
            (&format!(r#"{{"execute":"query-status","id":{id}}}"#), &ok),
            (&format!(r#"{{"execute":"x","id":{id}}}"#), &bad),
        ]);
    }
}

#[test]
fn bad_requests() {
    dialogue(&[
        (r#"{"execute":3}"#, &generic("QMP input member 'execute' must be a string")),
        (r#"{"exec":"x"}"#, &generic("QMP input member 'exec' is unexpected")),
        ("{}", &generic("QMP input lacks member 'execute'")),
        ("[]", &generic("QMP input must be a JSON object")),
        ("\"x\"", &generic("QMP input must be a JSON object")),
        (r#"{"execute":"stop","arguments":3}"#, &generic("QMP input member 'arguments' must be an object")),
        (r#"{"execute":"stop","arguments":{"a":1}}"#, &generic("Parameter 'a' is unexpected")),
        (r#"{"execute":"set_link"}"#, &generic("Parameter 'name' is missing")),
        (
            r#"{"execute":"set_link","arguments":{"name":"net0","up":"x"}}"#,
            &generic("Invalid parameter type for 'up', expected: boolean"),
        ),
        ("bad ", &generic("JSON parse error, invalid keyword 'bad'")),
        (r#"{"a":}"#, &generic("JSON parse error, expecting value")),
        ("}", &generic("JSON parse error, expecting value")),
        ("\u{7f}", &generic("JSON parse error, stray '\\\\u007F'")),
        // And it goes on.
        ("\n{'execute':'query-name'}", r#"{"return": {"name": "g0"}}"#),
    ]);
}

#[test]
fn running_and_stopping() {
    let mut bench = Bench::new();
    let mut client = bench.negotiated();
    let names = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| {
                let value: Value = serde_json::from_str(line).unwrap();
                let event = value.get("event").and_then(Value::as_str).map(str::to_owned);
                if event.is_some() {
                    assert!(value["timestamp"]["seconds"].as_u64().unwrap() > 1_500_000_000, "{line}");
                    assert!(value["timestamp"]["microseconds"].as_u64().unwrap() < 1_000_000, "{line}");
                }
                event.unwrap_or_else(|| line.to_owned())
            })
            .collect()
    };
    for (command, heard) in [
        ("stop", vec![r#"{"return": {}}"#]),
        ("cont", vec!["RESUME", r#"{"return": {}}"#]),
        ("cont", vec![r#"{"return": {}}"#]),
        ("query-status", vec![r#"{"return": {"status": "running", "running": true}}"#]),
        ("stop", vec!["STOP", r#"{"return": {}}"#]),
        ("system_reset", vec!["RESET", r#"{"return": {}}"#]),
        (
            "system_powerdown",
            vec![r#"{"error": {"class": "GenericError", "desc": "there is no power button"}}"#],
        ),
        ("quit", vec!["SHUTDOWN", r#"{"return": {}}"#]),
    ] {
        let text = bench.ask(&mut client, &format!(r#"{{"execute":"{command}"}}"#));
        assert_eq!(names(&text), heard, "{command}");
    }
    assert!(bench.machine.quit);
}

#[test]
fn what_libxl_and_others_ask() {
    dialogue(&[
        (r#"{"execute":"query-vnc"}"#, r#"{"return": {"enabled": false}}"#),
        (r#"{"execute":"query-fdsets"}"#, r#"{"return": []}"#),
        (r#"{"execute":"add-fd"}"#, &generic("No file descriptor supplied via SCM_RIGHTS")),
        (
            r#"{"execute":"remove-fd","arguments":{"fdset-id":1}}"#,
            &generic("File descriptor named 'fdset-id:1' not found"),
        ),
        (r#"{"execute":"query-hotpluggable-cpus"}"#, &generic("machine does not support hot-plugging CPUs")),
        (r#"{"execute":"device_add"}"#, &generic("Parameter 'driver' is missing")),
        (
            r#"{"execute":"device_add","arguments":{"driver":"nope","x":1}}"#,
            &generic("'nope' is not a valid device model name"),
        ),
        (
            r#"{"execute":"device_add","arguments":{"driver":"virtio-rng-pci"}}"#,
            &generic("Bus 'pcie.0' does not support hotplugging"),
        ),
        (
            r#"{"execute":"device_del","arguments":{"id":"nope"}}"#,
            &error("DeviceNotFound", "Device 'nope' not found"),
        ),
        (
            r#"{"execute":"device_del","arguments":{"id":"nic0"}}"#,
            &generic("Bus 'pcie.0' does not support hotplugging"),
        ),
        (r#"{"execute":"set_link","arguments":{"name":"net0","up":false}}"#, r#"{"return": {}}"#),
        (
            r#"{"execute":"set_link","arguments":{"name":"x","up":false}}"#,
            &error("DeviceNotFound", "Device 'x' not found"),
        ),
        (r#"{"execute":"xen-set-global-dirty-log","arguments":{"enable":true}}"#, r#"{"return": {}}"#),
        (r#"{"execute":"change"}"#, &error("CommandNotFound", "The command change has not been found")),
        (r#"{"execute":"system_wakeup"}"#, &generic("wake-up from suspend is not supported by this guest")),
        (
            r#"{"execute":"query-command-line-options","arguments":{"option":"nope"}}"#,
            &generic("invalid option name: nope"),
        ),
    ]);
}

#[test]
fn the_probe_finds_what_it_looks_for() {
    let mut bench = Bench::new();
    let mut client = bench.negotiated();
    let answer = bench.answer(&mut client, r#"{"execute":"query-command-line-options"}"#);
    let run_with = answer["return"].as_array().unwrap().iter().find(|group| group["option"] == "run-with");
    let names: Vec<_> = run_with.unwrap()["parameters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|parameter| &parameter["name"])
        .collect();
    assert!(names.contains(&&json!("chroot")) && names.contains(&&json!("user")), "{names:?}");
    let commands = bench.answer(&mut client, r#"{"execute":"query-commands"}"#);
    assert!(commands["return"].as_array().unwrap().contains(&json!({"name": "query-commands"})));
}

#[test]
fn what_there_is() {
    let mut bench = Bench::new();
    let path = bench.path().display().to_string();
    let mut client = bench.negotiated();
    let chardevs = bench.answer(&mut client, r#"{"execute":"query-chardev"}"#);
    let filename = format!("unix:{path},server=on");
    assert_eq!(
        chardevs["return"],
        json!([{"frontend-open": true, "filename": filename, "label": "libxl-cmd"}])
    );
    let blocks = bench.answer(&mut client, r#"{"execute":"query-block"}"#);
    let drive = &blocks["return"][0];
    assert_eq!((&drive["device"], &drive["inserted"]["file"]), (&json!("d"), &json!("/a.img")));
    assert_eq!(drive["inserted"]["cache"], json!({"no-flush": false, "direct": true, "writeback": true}));
    assert_eq!(drive["qdev"], json!("/machine/peripheral/vd/virtio-backend"));
    assert_eq!(blocks["return"][1]["inserted"]["node-name"], json!("n"));
    let stats = bench.answer(&mut client, r#"{"execute":"query-blockstats"}"#);
    let drive = &stats["return"][0];
    assert_eq!(drive["device"], json!("d"));
    assert_eq!((&drive["stats"]["rd_bytes"], &drive["stats"]["rd_operations"]), (&json!(4096), &json!(1)));
    assert_eq!((&drive["stats"]["wr_bytes"], &drive["stats"]["wr_operations"]), (&json!(0), &json!(0)));
    let pci = bench.answer(&mut client, r#"{"execute":"query-pci"}"#);
    let nic = &pci["return"][0]["devices"][1];
    assert_eq!(
        (&nic["id"]["device"], &nic["class_info"]["desc"]),
        (&json!(0x1041), &json!("Ethernet controller"))
    );
    assert_eq!(nic["regions"][0]["address"], json!(0x80_0000_0000u64));
}

#[test]
fn the_human_monitor() {
    let mut bench = Bench::new();
    let mut client = bench.negotiated();
    for (line, text) in [
        ("info status", "VM status: paused (prelaunch)\n"),
        ("  info   name ", "g0\n"),
        ("nope", "unknown command: 'nope'\n"),
        ("info nope", "unknown command: 'info nope'\n"),
        (
            "info status x",
            "status: extraneous characters at the end of line\nTry \"help info status\" for more information\n",
        ),
        ("", ""),
        (
            "info network",
            "nic0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\n \
             \\ net0: index=0,type=tap,ifname=t0\n",
        ),
        (
            "info block",
            "d (#d): /a.img (raw)\n    Attached to:      /machine/peripheral/vd/virtio-backend\n    \
             Cache mode:       writeback, direct\n\nn: /b.img (raw, read-only)\n    Cache mode:       writeback\n",
        ),
        (
            "info pci",
            "  Bus  0, device   0, function 0:\n    Host bridge: PCI device 1b36:0008\n      \
             PCI subsystem 1af4:1100\n      id \"\"\n  \
             Bus  0, device   1, function 0:\n    Ethernet controller: PCI device 1af4:1041\n      \
             PCI subsystem 1af4:1100\n      \
             BAR0: 64 bit prefetchable memory at 0x8000000000 [0x800000ffff].\n      id \"nic0\"\n",
        ),
        ("set_link nic0 off", ""),
        ("set_link x off", "Error: Device 'x' not found\n"),
        ("set_link x", "set_link: expected a name and 'on' or 'off'\n"),
    ] {
        let command = json!({"execute": "human-monitor-command", "arguments": {"command-line": line}});
        let answer = bench.answer(&mut client, &command.to_string());
        assert_eq!(answer["return"], json!(text.replace('\n', "\r\n")), "{line}");
    }
    let version = bench.answer(
        &mut client,
        r#"{"execute":"human-monitor-command","arguments":{"command-line":"info version"}}"#,
    );
    assert_eq!(version["return"], json!(format!("10.0.2 ({})\r\n", query::package())));
    for list in ["info", "help"] {
        let command = json!({"execute": "human-monitor-command", "arguments": {"command-line": list}});
        let answer = bench.answer(&mut client, &command.to_string());
        assert!(answer["return"].as_str().unwrap().contains("info pci  -- show PCI info\r\n"));
    }
}
