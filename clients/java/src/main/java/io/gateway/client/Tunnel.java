package io.gateway.client;

import java.io.Closeable;
import java.io.IOException;
import java.lang.ref.WeakReference;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.ReentrantLock;

/** A tunnel to a game server, which Dialer opens. One thread may read while another one writes. */
public final class Tunnel implements Closeable {
    /** What read returns if nothing comes in time. */
    public static final int NOTHING = -2;

    /** Milliseconds that close gives a connection which takes nothing, and what was written in all. */
    private static final int STUCK = 500, FAREWELL = 2000;
    /** Milliseconds between attempts to resume that bring nothing: at first, and at most. */
    private static final int PAUSE = 50, LONGEST = 1000;

    /** A connection that carries, or has carried, the tunnel. */
    private static final class Link {
        final Socket socket;
        final int generation;
        boolean writing; // somebody does; guarded by state
        volatile long moved; // since when nothing was taken of what is being written

        Link(Socket socket, int generation) {
            this.socket = socket;
            this.generation = generation;
        }

        IOException write(byte[] data) {
            try {
                socket.getOutputStream().write(data);
                return null;
            } catch (IOException e) {
                return e;
            }
        }
    }

    private final Dialer dialer;
    private final Session session; // null: plain
    private final Object state = new Object(); // guards the session and what is below; notified of changes
    private final ReentrantLock pumping = new ReentrantLock(), recovering = new ReentrantLock();
    private final Watch watch;
    private volatile Link link;
    private Socket trying; // to resume, and has no answer yet
    private int at, generation;
    private boolean ended, told, attempting, pausing;
    private Exception why;
    private long closing; // when close has waited for long enough; 0: it was not called
    private volatile int resumes;
    private long heard = now(), asked;
    // Of attempts to resume since bytes got through: how many, since when, and what there was then.
    private int tries, pause = PAUSE;
    private long since, before, back;

    Tunnel(Dialer dialer, int at, Socket socket, Session session) {
        this.dialer = dialer;
        this.at = at;
        link = new Link(socket, 0);
        this.session = session;
        watch = session == null ? null : watch(new WeakReference<>(this), Math.max(10, Math.min(250, stall() / 4)));
    }

    private static Watch watch(WeakReference<Tunnel> tunnel, long period) {
        Watch[] w = new Watch[1];
        w[0] = Watch.every(period, () -> {
            Tunnel t = tunnel.get();
            if (t != null) t.watch();
            else if (w[0] != null) w[0].cancel();
        });
        return w[0];
    }

    private static long now() { return System.nanoTime() / 1000000; }

    /** Milliseconds for which a connection may take nothing of what is written. */
    private long stall() { return (long) dialer.silence + dialer.patience; }

    /** Gives up a connection that takes nothing; who writes then goes on by another one. */
    private void watch() {
        Link l;
        synchronized (state) {
            l = link;
            boolean stuck = l.writing && now() - l.moved >= (closing == 0 ? stall() : STUCK);
            if (closing == 0 ? !stuck : !stuck && now() < closing) return;
        }
        if (closing == 0) Dialer.cut(l.socket);
        else stop(null);
    }

    /** Whether it outlives its connection. */
    public boolean isResumable() { return session != null; }

    /** How often it has been resumed. */
    public int resumes() { return resumes; }

    /** Reads some bytes; -1 at the end. */
    public int read(byte[] data) throws IOException { return read(data, 0, data.length, Integer.MAX_VALUE); }

    /** Reads at most count bytes; -1 at the end, NOTHING after so many milliseconds, at least 1. */
    public int read(byte[] data, int offset, int count, int wait) throws IOException {
        if (session == null) {
            try {
                link.socket.setSoTimeout(wait == Integer.MAX_VALUE ? 0 : Math.max(1, wait));
                return link.socket.getInputStream().read(data, offset, count);
            } catch (SocketTimeoutException e) {
                return NOTHING;
            }
        }
        for (long deadline = now() + wait; ; ) {
            int n;
            boolean end;
            synchronized (state) {
                n = session.take(data, offset, count, now());
                end = session.atEnd();
            }
            if (n > 0 || end) {
                try {
                    flush();
                } catch (IOException e) {
                    // What is read next tells.
                }
                return n > 0 ? n : -1;
            }
            if (now() >= deadline) return NOTHING;
            pump(deadline);
        }
    }

    public void write(byte[] data) throws IOException { write(data, 0, data.length); }

    /** Sends all, and waits where the game server does not read. */
    public void write(byte[] data, int offset, int count) throws IOException {
        if (session == null) {
            link.socket.getOutputStream().write(data, offset, count);
            return;
        }
        while (true) {
            int n;
            synchronized (state) {
                check();
                n = Math.min(count, session.room());
                session.send(data, offset, n);
            }
            offset += n;
            count -= n;
            flush();
            if (count == 0) return;
            if (n == 0) pump(now() + 50);
        }
    }

    /** Finishes writing; reading goes on. Not by plain TLS. */
    public void closeWrite() throws IOException {
        if (session == null) {
            link.socket.shutdownOutput();
            return;
        }
        synchronized (state) {
            session.finished = true;
        }
        flush();
    }

    /**
     * Ends the tunnel. What was written still arrives, for which it waits a little: 2 s at most, half a
     * second where the connection takes nothing.
     */
    @Override
    public void close() {
        if (session != null) {
            synchronized (state) {
                if (closing == 0) closing = now() + FAREWELL;
            }
            try {
                closeWrite();
                byte[] rest = new byte[4096];
                while (now() < closing) {
                    int n;
                    boolean waits;
                    synchronized (state) {
                        n = session.take(rest, 0, rest.length, now());
                        if (ended || session.over()) break;
                        waits = attempting || link.writing;
                        if (waits) pause(50);
                    }
                    if (waits) continue;
                    flush();
                    synchronized (state) {
                        if (session.over()) break;
                    }
                    if (n == 0) pump(Math.min(closing, now() + 50)); // what is stuck meanwhile is seen
                }
            } catch (IOException e) {
                // It is over in any case.
            }
        }
        end(null);
    }

    /** Ends the tunnel at once: the game server of a resumable one sees a reset. */
    public void abort() {
        boolean said = false;
        Link l;
        synchronized (state) {
            l = link;
            if (session != null && !ended && !attempting && !l.writing) said = l.writing = true;
        }
        if (said) { // else the gateway finds out in time
            Watch late = Watch.after(STUCK / 2, () -> Dialer.cut(l.socket));
            l.write(new byte[] {0, 0, 3, 0});
            late.cancel();
            synchronized (state) {
                l.writing = false;
            }
        }
        end(null);
    }

    /** Goes on by another connection: for ConnectivityManager's callback. It waits for that. */
    public void reconnect() throws IOException {
        if (session == null) return;
        int lost;
        synchronized (state) {
            lost = generation;
            if (pausing) {
                pausing = false;
                state.notifyAll();
            } else if (!attempting) {
                tries = 0;
            }
        }
        recover(lost, new GatewayException.NoAnswer("reconnect was called"));
        flush();
    }

    private void check() throws IOException {
        if (!ended) return;
        if (why instanceof IOException) throw (IOException) why;
        throw new GatewayException.NoAnswer("the tunnel is closed");
    }

    private void end(Exception error) {
        stop(error);
        synchronized (state) {
            if (told) return;
            told = true;
            error = why;
        }
        dialer.tell(Dialer.Event.ENDED, error);
    }

    /** Ends all that moves. It waits for nothing and tells nobody. */
    private void stop(Exception error) {
        Link l;
        Socket t;
        boolean writing;
        synchronized (state) {
            if (ended) return;
            ended = true;
            why = error;
            l = link;
            writing = l.writing;
            t = trying;
            state.notifyAll();
        }
        if (watch != null) watch.cancel();
        if (t != null) Dialer.cut(t);
        if (writing) Dialer.cut(l.socket);
        else Dialer.leave(l.socket);
    }

    /** Writes what is to be written, unless somebody does already, or resumes: who does looks again. */
    private void flush() throws IOException {
        while (true) {
            Link l;
            byte[] data;
            synchronized (state) {
                l = link;
                if (ended || attempting || l.writing) return;
                data = session.output(now());
                if (data.length == 0) return;
                l.writing = true;
                l.moved = now();
            }
            IOException error = l.write(data);
            synchronized (state) {
                l.writing = false;
                state.notifyAll();
                if (ended || error != null && session.over()) return;
            }
            if (error != null) recover(l.generation, error);
        }
    }

    /** Reads once, at the latest until deadline; finds out a silent gateway. */
    private void pump(long deadline) throws IOException {
        IOException error = null;
        Link l = null;
        try {
            if (!pumping.tryLock(Math.max(0, deadline - now()), TimeUnit.MILLISECONDS)) return;
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new java.io.InterruptedIOException();
        }
        try {
            synchronized (state) {
                check();
                l = link;
            }
            if (session.closed >= 0) {
                GatewayException gone = new GatewayException.Gone("the game server or the gateway has ended the tunnel");
                end(gone);
                throw gone;
            }
            long most = Math.min(1000, Math.min(dialer.silence, dialer.patience));
            try {
                byte[] buffer = new byte[16384];
                l.socket.setSoTimeout((int) Math.max(1, Math.min(most, deadline - now())));
                int n = l.socket.getInputStream().read(buffer);
                if (n < 0) throw new IOException("the connection ended");
                synchronized (state) {
                    if (l.generation == generation) session.input(buffer, 0, n);
                    heard = now();
                    asked = 0;
                }
            } catch (SocketTimeoutException e) {
                error = silent();
            } catch (IOException e) {
                error = e;
            } catch (Session.Violation e) {
                GatewayException broken = new GatewayException.NoAnswer("the gateway breaks the protocol: " + e.getMessage());
                end(broken);
                throw broken;
            }
        } finally {
            pumping.unlock();
        }
        if (error != null && !session.over()) recover(l.generation, error);
        flush();
    }

    private IOException silent() {
        synchronized (state) {
            if (asked == 0 && now() - heard >= dialer.silence) {
                asked = now();
                session.ping = true;
            } else if (asked != 0 && now() - asked >= dialer.patience) {
                return new GatewayException.NoAnswer("the gateway is silent");
            }
        }
        return null;
    }

    /** Waits for so many milliseconds, or for a change. The caller holds state. */
    private void pause(long milliseconds) throws java.io.InterruptedIOException {
        try {
            state.wait(Math.max(1, milliseconds));
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new java.io.InterruptedIOException();
        }
    }

    /** Looks for a connection that carries the tunnel on, unless somebody has found one. */
    private void recover(int lost, IOException error) throws IOException {
        try {
            while (!recovering.tryLock(50, TimeUnit.MILLISECONDS)) {
                synchronized (state) {
                    check();
                }
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new java.io.InterruptedIOException();
        }
        boolean ours = false;
        try {
            synchronized (state) {
                check();
                if (lost != generation || attempting) return;
                attempting = ours = true;
            }
            dialer.tell(Dialer.Event.RECONNECTING, error);
            Dialer.cut(link.socket);
            while (true) {
                byte[] request;
                int wait;
                if (!prepare()) {
                    if (!(error instanceof GatewayException)) error = new GatewayException.NoAnswer(error.getMessage());
                    end(error);
                    throw error;
                }
                synchronized (state) {
                    check();
                    generation++;
                    byte[] line = Session.ascii(session.reattach()), first = session.output(now());
                    request = java.util.Arrays.copyOf(line, line.length + first.length);
                    System.arraycopy(first, 0, request, line.length, first.length);
                    wait = closing == 0 ? dialer.timeout : (int) Math.max(1, Math.min(dialer.timeout, closing - now()));
                }
                try {
                    Socket s = dialer.ask(at, request, null, wait, this::tries);
                    synchronized (state) {
                        trying = null;
                        link = new Link(s, ++generation);
                        heard = back = now();
                        asked = 0;
                        resumes++;
                        attempting = false;
                        state.notifyAll();
                        if (ended) Dialer.cut(s);
                    }
                    dialer.tell(Dialer.Event.BACK, null);
                    return;
                } catch (GatewayException e) {
                    if (e.status == 401 || e.status == 410) {
                        end(e);
                        throw e;
                    }
                    error = e;
                    dialer.tell(Dialer.Event.FAILED, e);
                }
            }
        } finally {
            if (ours) { // by an interrupt, too
                synchronized (state) {
                    attempting = false;
                    trying = null;
                }
            }
            recovering.unlock();
        }
    }

    /**
     * Waits where the last attempt has brought nothing, and chooses the gateway; false: it was tried for
     * long enough. A gateway that answers 200 and ends the connection again and again brings nothing.
     */
    private boolean prepare() throws IOException {
        synchronized (state) {
            if (tries == 0 || session.progress() != before || back != 0 && now() - back >= 2 * LONGEST) {
                tries = 0;
                pause = PAUSE;
                since = now();
            } else if (now() - since >= dialer.hold) {
                return false;
            } else {
                at = (at + 1) % dialer.gateways.length;
            }
            if (tries > 0 && tries % dialer.gateways.length == 0) {
                long until = now() + pause + new Random().nextInt(pause);
                pausing = true;
                while (pausing && !ended && now() < until) pause(until - now());
                pausing = false;
                pause = Math.min(2 * pause, LONGEST);
            }
            tries++;
            back = 0;
            before = session.progress();
            return true;
        }
    }

    /** A connection that asks to resume is known, to be given up with the tunnel. */
    private void tries(Socket s) {
        synchronized (state) {
            trying = s;
            if (ended) Dialer.cut(s);
        }
    }
}
