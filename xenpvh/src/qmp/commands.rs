//! The commands there are, as a table, and how one is carried out.

use serde_json::{Map, Value, json};

use crate::cli;

use super::types::{CharInfo, Control, Error, Event, RunState};
use super::{monitor, query};

/// What a command may use.
pub(super) struct Context<'a> {
    pub backend: &'a mut dyn Control,
    pub chardevs: &'a [CharInfo],
    /// Events that the command brings about, in order.
    pub events: Vec<Event>,
}

/// What a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    String,
    Boolean,
    Integer,
}

/// A parameter: its name, what it is, and whether it must be there.
type Parameter = (&'static str, Type, bool);

type Run = fn(&mut Context<'_>, &Map<String, Value>) -> Result<Value, Error>;

/// A command. Its arguments have been checked against `parameters` when it runs.
pub(super) struct Command {
    pub name: &'static str,
    parameters: &'static [Parameter],
    /// Other parameters are for it to judge.
    open: bool,
    run: Run,
}

const fn command(name: &'static str, parameters: &'static [Parameter], run: Run) -> Command {
    Command { name, parameters, open: false, run }
}

/// Every command.
pub(super) const COMMANDS: &[Command] = &[
    command("add-fd", &[("fdset-id", Type::Integer, false), ("opaque", Type::String, false)], |_, _| {
        Err(Error::generic("No file descriptor supplied via SCM_RIGHTS"))
    }),
    command("change-vnc-password", &[("password", Type::String, true)], |_, _| {
        Err(Error::generic("Could not set password"))
    }),
    command("cont", &[], |context, _| cont(context)),
    Command {
        name: "device_add",
        parameters: &[("driver", Type::String, true)],
        open: true,
        run: device_add,
    },
    command("device_del", &[("id", Type::String, true)], device_del),
    command(
        "human-monitor-command",
        &[("command-line", Type::String, true), ("cpu-index", Type::Integer, false)],
        |context, arguments| Ok(monitor::run(context, text(arguments, "command-line")).into()),
    ),
    command("qmp_capabilities", &[], |_, _| {
        Err(Error::command_not_found("Capabilities negotiation is already complete, command ignored"))
    }),
    command("query-block", &[], |context, _| Ok(query::blocks(context.backend))),
    command("query-blockstats", &[("query-nodes", Type::Boolean, false)], |context, arguments| {
        let nodes = arguments.get("query-nodes") == Some(&Value::Bool(true));
        Ok(query::block_stats(context.backend, nodes))
    }),
    command("query-chardev", &[], |context, _| Ok(query::chardevs(context.chardevs))),
    command("query-command-line-options", &[("option", Type::String, false)], command_line_options),
    command("query-commands", &[], |_, _| {
        Ok(COMMANDS.iter().map(|command| json!({"name": command.name})).collect())
    }),
    command("query-fdsets", &[], |_, _| Ok(json!([]))),
    command("query-hotpluggable-cpus", &[], |_, _| {
        Err(Error::generic("machine does not support hot-plugging CPUs"))
    }),
    command("query-migrate", &[], |_, _| Ok(json!({}))),
    command("query-name", &[], |context, _| {
        let name = context.backend.name();
        Ok(if name.is_empty() { json!({}) } else { json!({"name": name}) })
    }),
    command("query-named-block-nodes", &[("flat", Type::Boolean, false)], |context, _| {
        Ok(query::nodes(context.backend))
    }),
    command("query-pci", &[], |context, _| Ok(query::pci(context.backend))),
    command("query-status", &[], |context, _| Ok(query::status(context.backend))),
    command("query-target", &[], |_, _| Ok(json!({"arch": "i386"}))),
    command("query-version", &[], |_, _| Ok(query::version())),
    command("query-vnc", &[], |_, _| Ok(json!({"enabled": false}))),
    command("quit", &[], |context, _| quit(context)),
    command("remove-fd", &[("fdset-id", Type::Integer, true), ("fd", Type::Integer, false)], remove_fd),
    command(
        "set_link",
        &[("name", Type::String, true), ("up", Type::Boolean, true)],
        |context, arguments| {
            let up = arguments.get("up") == Some(&Value::Bool(true));
            context.backend.set_link(text(arguments, "name"), up).map(|()| json!({}))
        },
    ),
    command("stop", &[], |context, _| stop(context)),
    command("system_powerdown", &[], |context, _| system_powerdown(context)),
    command("system_reset", &[], |context, _| system_reset(context)),
    command("system_wakeup", &[], |_, _| {
        Err(Error::generic("wake-up from suspend is not supported by this guest"))
    }),
    command(
        "xen-save-devices-state",
        &[("filename", Type::String, true), ("live", Type::Boolean, false)],
        // A PVH guest brings its devices up anew when it is restored, so there is nothing to save.
        |_, _| Err(Error::generic("saving the state of devices is not supported")),
    ),
    // Every write to guest memory is reported at all times.
    command("xen-set-global-dirty-log", &[("enable", Type::Boolean, true)], |_, _| Ok(json!({}))),
];

/// A request taken apart.
pub(super) struct Request {
    pub command: String,
    pub arguments: Map<String, Value>,
}

/// Takes a message apart: its id, and the request or what is wrong with it.
pub(super) fn request(message: Value) -> (Option<Value>, Result<Request, Error>) {
    let Value::Object(members) = message else {
        return (None, Err(Error::generic("QMP input must be a JSON object")));
    };
    let id = members.get("id").cloned();
    (id, take_apart(members))
}

fn take_apart(members: Map<String, Value>) -> Result<Request, Error> {
    let mut command = None;
    let mut arguments = Map::new();
    for (key, value) in members {
        match (key.as_str(), value) {
            ("execute", Value::String(name)) => command = Some(name),
            ("execute", _) => return Err(Error::generic("QMP input member 'execute' must be a string")),
            ("arguments", Value::Object(given)) => arguments = given,
            ("arguments", _) => return Err(Error::generic("QMP input member 'arguments' must be an object")),
            ("id", _) => {}
            (other, _) => return Err(Error::generic(format!("QMP input member '{other}' is unexpected"))),
        }
    }
    let command = command.ok_or_else(|| Error::generic("QMP input lacks member 'execute'"))?;
    Ok(Request { command, arguments })
}

/// Carries out a request of a client that has negotiated.
pub(super) fn run(context: &mut Context<'_>, request: &Request) -> Result<Value, Error> {
    let Some(command) = COMMANDS.iter().find(|command| command.name == request.command) else {
        return Err(Error::command_not_found(format!("The command {} has not been found", request.command)));
    };
    check(command, &request.arguments)?;
    (command.run)(context, &request.arguments)
}

fn check(command: &Command, arguments: &Map<String, Value>) -> Result<(), Error> {
    for (name, kind, required) in command.parameters {
        let Some(value) = arguments.get(*name) else {
            if *required {
                return Err(Error::generic(format!("Parameter '{name}' is missing")));
            }
            continue;
        };
        let (fits, expected) = match kind {
            Type::String => (value.is_string(), "string"),
            Type::Boolean => (value.is_boolean(), "boolean"),
            Type::Integer => (value.is_i64() || value.is_u64(), "integer"),
        };
        if !fits {
            return Err(Error::generic(format!("Invalid parameter type for '{name}', expected: {expected}")));
        }
    }
    let known = |name: &String| command.parameters.iter().any(|(parameter, ..)| parameter == name);
    match arguments.keys().find(|name| !known(name)) {
        Some(name) if !command.open => Err(Error::generic(format!("Parameter '{name}' is unexpected"))),
        _ => Ok(()),
    }
}

/// Negotiates: the first command of a client.
pub(super) fn negotiate(request: &Request) -> Result<Value, Error> {
    if request.command != "qmp_capabilities" {
        return Err(Error::command_not_found("Expecting capabilities negotiation with 'qmp_capabilities'"));
    }
    if let Some(name) = request.arguments.keys().find(|name| *name != "enable") {
        return Err(Error::generic(format!("Parameter '{name}' is unexpected")));
    }
    match request.arguments.get("enable") {
        None => Ok(json!({})),
        Some(Value::Array(wanted)) => match wanted.first() {
            None => Ok(json!({})),
            Some(Value::String(name)) => {
                Err(Error::generic(format!("Parameter 'enable' does not accept value '{name}'")))
            }
            Some(_) => Err(Error::generic("Invalid parameter type for 'enable[0]', expected: string")),
        },
        Some(_) => Err(Error::generic("Invalid parameter type for 'enable', expected: array")),
    }
}

/// A text that was checked to be there.
fn text<'a>(arguments: &'a Map<String, Value>, name: &str) -> &'a str {
    arguments.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// `cont`, for QMP and the human monitor alike.
pub(super) fn cont(context: &mut Context<'_>) -> Result<Value, Error> {
    let before = context.backend.status();
    context.backend.cont()?;
    if before != RunState::Running && context.backend.status() == RunState::Running {
        context.events.push(Event::RESUME);
    }
    Ok(json!({}))
}

/// `stop`.
pub(super) fn stop(context: &mut Context<'_>) -> Result<Value, Error> {
    let before = context.backend.status();
    context.backend.stop()?;
    if before == RunState::Running && context.backend.status() != RunState::Running {
        context.events.push(Event::STOP);
    }
    Ok(json!({}))
}

/// `quit`.
pub(super) fn quit(context: &mut Context<'_>) -> Result<Value, Error> {
    context.backend.quit();
    context.events.push(Event::shutdown(false, "host-qmp-quit"));
    Ok(json!({}))
}

/// `system_reset`.
pub(super) fn system_reset(context: &mut Context<'_>) -> Result<Value, Error> {
    context.backend.system_reset()?;
    context.events.push(Event::reset(false, "host-qmp-system-reset"));
    Ok(json!({}))
}

/// `system_powerdown`.
pub(super) fn system_powerdown(context: &mut Context<'_>) -> Result<Value, Error> {
    context.backend.system_powerdown()?;
    context.events.push(Event::POWERDOWN);
    Ok(json!({}))
}

fn device_add(_: &mut Context<'_>, arguments: &Map<String, Value>) -> Result<Value, Error> {
    cli::check_driver(text(arguments, "driver")).map_err(Error::generic)?;
    Err(Error::generic("Bus 'pcie.0' does not support hotplugging"))
}

fn device_del(context: &mut Context<'_>, arguments: &Map<String, Value>) -> Result<Value, Error> {
    let id = text(arguments, "id");
    if id.is_empty() || !context.backend.functions().iter().any(|function| function.id == id) {
        return Err(Error::device_not_found(id));
    }
    Err(Error::generic("Bus 'pcie.0' does not support hotplugging"))
}

fn remove_fd(_: &mut Context<'_>, arguments: &Map<String, Value>) -> Result<Value, Error> {
    let number = |name: &str| arguments.get(name).and_then(Value::as_i64);
    let fd = number("fd").map_or_else(String::new, |fd| format!(", fd:{fd}"));
    let set = number("fdset-id").unwrap_or_default();
    Err(Error::generic(format!("File descriptor named 'fdset-id:{set}{fd}' not found")))
}

fn command_line_options(_: &mut Context<'_>, arguments: &Map<String, Value>) -> Result<Value, Error> {
    let wanted = arguments.get("option").and_then(Value::as_str);
    let groups = cli::OPTION_GROUPS.iter().filter(|(name, _)| wanted.is_none_or(|wanted| wanted == *name));
    let list: Vec<Value> = groups
        .map(|(name, parameters)| {
            let parameters: Vec<Value> =
                parameters.iter().map(|(name, kind)| json!({"name": name, "type": kind})).collect();
            json!({"parameters": parameters, "option": name})
        })
        .collect();
    match wanted {
        Some(wanted) if list.is_empty() => Err(Error::generic(format!("invalid option name: {wanted}"))),
        _ => Ok(list.into()),
    }
}
