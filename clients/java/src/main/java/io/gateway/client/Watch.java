package io.gateway.client;

import java.util.Timer;
import java.util.TimerTask;

/** Does something later, for who cannot because it waits: a socket's write has no time-out. */
final class Watch extends TimerTask {
    private static final Timer timer = new Timer("gateway-watch", true);

    private final Runnable task;

    private Watch(Runnable task) { this.task = task; }

    /** Runs a task, which must not wait, after so many milliseconds. */
    static Watch after(long milliseconds, Runnable task) {
        Watch w = new Watch(task);
        timer.schedule(w, Math.max(0, milliseconds));
        return w;
    }

    /** Runs it again and again. */
    static Watch every(long milliseconds, Runnable task) {
        Watch w = new Watch(task);
        timer.schedule(w, milliseconds, milliseconds);
        return w;
    }

    @Override
    public void run() {
        try {
            task.run();
        } catch (RuntimeException e) {
            // The timer is that of all tunnels; one application's listener must not end it.
        }
    }
}
