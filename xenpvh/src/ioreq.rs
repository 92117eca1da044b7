//! The ioreq loop: one thread a vCPU, so that a slow access by one never delays another's.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use domain::{Domain, IoreqChannel, Patience};

use crate::machine::Machine;

/// Bytes of stack of a vCPU's thread. It calls a few levels deep into the devices and allocates nothing.
const STACK: usize = 128 << 10;

/// Starts serving every vCPU of `domain`. The threads end when the domain's channels do.
///
/// # Errors
/// A thread could not be made.
pub fn serve(domain: &dyn Domain, machine: &Arc<Machine>) -> io::Result<Vec<JoinHandle<()>>> {
    let channels = domain.take_channels().into_iter().enumerate();
    channels
        .map(|(vcpu, channel)| {
            let machine = machine.clone();
            let thread = Builder::new().name(format!("vcpu{vcpu}")).stack_size(STACK);
            thread.spawn(move || serve_vcpu(vcpu, channel, &machine))
        })
        .collect()
}

fn serve_vcpu(vcpu: usize, mut channel: Box<dyn IoreqChannel>, machine: &Machine) {
    let mut patience = Patience::new(domain::longest_look());
    loop {
        match channel.wait() {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                log::error!("vCPU {vcpu} can no longer be served: {error}");
                return;
            }
        }
        while let Some(request) = channel.slot().take() {
            patience.resume();
            let data = machine.handle(&request);
            channel.slot().finish(data);
            if let Err(error) = channel.notify() {
                log::error!("vCPU {vcpu} can no longer be answered: {error}");
                return;
            }
            patience.look(|| channel.slot().is_ready());
        }
    }
}
