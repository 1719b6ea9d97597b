package io.gateway.client;

import java.io.Closeable;
import java.io.IOException;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.ReentrantLock;

/** A tunnel to a game server, which Dialer opens. One thread may read while another one writes. */
public final class Tunnel implements Closeable {
    /** What read returns if nothing comes in time. */
    public static final int NOTHING = -2;

    private final Dialer dialer;
    private final Session session; // null: plain
    private final Object state = new Object(); // guards the session and what is below
    private final ReentrantLock pumping = new ReentrantLock(), flushing = new ReentrantLock(), recovering = new ReentrantLock();
    private volatile Socket socket;
    private int at, generation;
    private boolean ended, attempting; // attempting is seen by the listener of who recovers alone
    private volatile int resumes;
    private long heard = now(), asked;

    Tunnel(Dialer dialer, int at, Socket socket, Session session) {
        this.dialer = dialer;
        this.at = at;
        this.socket = socket;
        this.session = session;
    }

    private static long now() { return System.nanoTime() / 1000000; }

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
                socket.setSoTimeout(wait == Integer.MAX_VALUE ? 0 : Math.max(1, wait));
                return socket.getInputStream().read(data, offset, count);
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
                flush();
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
            socket.getOutputStream().write(data, offset, count);
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
            socket.shutdownOutput();
            return;
        }
        synchronized (state) {
            session.finished = true;
        }
        flush();
    }

    /** Ends the tunnel. What was written still arrives, for which it waits a little. */
    @Override
    public void close() {
        if (session != null && !ended) {
            try {
                closeWrite();
                byte[] rest = new byte[4096];
                for (long deadline = now() + 2000; now() < deadline; ) {
                    int n;
                    synchronized (state) {
                        n = session.take(rest, 0, rest.length, now());
                    }
                    flush();
                    synchronized (state) {
                        if (session.over()) break;
                    }
                    if (n == 0) pump(deadline);
                }
            } catch (IOException e) {
                // It is over in any case.
            }
        }
        end(null);
    }

    /** Ends the tunnel at once: the game server sees a reset. */
    public void abort() {
        if (session != null && !ended) {
            flushing.lock();
            try {
                socket.getOutputStream().write(new byte[] {0, 0, 3, 0});
            } catch (IOException e) {
                // The gateway finds out in time.
            } finally {
                flushing.unlock();
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
        }
        recover(lost, new GatewayException.NoAnswer("reconnect was called"));
    }

    private void check() throws IOException {
        if (ended) throw new GatewayException.NoAnswer("the tunnel is closed");
    }

    private void end(Exception why) {
        synchronized (state) {
            if (ended) return;
            ended = true;
        }
        Dialer.close(socket);
        dialer.tell(Dialer.Event.ENDED, why);
    }

    private void flush() throws IOException {
        IOException error = null;
        int from;
        flushing.lock();
        try {
            byte[] data;
            synchronized (state) {
                if (ended) return;
                from = generation;
                data = session.output(now());
            }
            if (data.length == 0) return;
            try {
                socket.getOutputStream().write(data);
            } catch (IOException e) {
                error = e;
            }
        } finally {
            flushing.unlock();
        }
        if (error != null && !session.over()) recover(from, error);
    }

    /** Reads once, at the latest until deadline; finds out a silent gateway. */
    private void pump(long deadline) throws IOException {
        IOException error = null;
        int from = 0;
        try {
            if (!pumping.tryLock(Math.max(0, deadline - now()), TimeUnit.MILLISECONDS)) return;
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new java.io.InterruptedIOException();
        }
        try {
            Socket s;
            synchronized (state) {
                check();
                s = socket;
                from = generation;
            }
            if (session.closed >= 0) {
                GatewayException gone = new GatewayException.Gone("the game server or the gateway has ended the tunnel");
                end(gone);
                throw gone;
            }
            long most = Math.min(1000, Math.min(dialer.silence, dialer.patience));
            try {
                byte[] buffer = new byte[16384];
                s.setSoTimeout((int) Math.max(1, Math.min(most, deadline - now())));
                int n = s.getInputStream().read(buffer);
                if (n < 0) throw new IOException("the connection ended");
                synchronized (state) {
                    if (from == generation) session.input(buffer, 0, n);
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
        if (error != null && !session.over()) recover(from, error);
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

    /** Looks for a connection that carries the tunnel on, unless somebody has found one. */
    private void recover(int lost, Exception error) throws IOException {
        recovering.lock();
        flushing.lock();
        boolean ours = false;
        try {
            synchronized (state) {
                check();
                if (lost != generation || attempting) return;
                attempting = ours = true;
            }
            dialer.tell(Dialer.Event.RECONNECTING, error);
            Dialer.close(socket);
            long since = now();
            int pause = 50, failed = 0;
            while (true) {
                byte[] request;
                synchronized (state) {
                    check();
                    generation++;
                    byte[] line = Session.ascii(session.reattach()), first = session.output(now());
                    request = java.util.Arrays.copyOf(line, line.length + first.length);
                    System.arraycopy(first, 0, request, line.length, first.length);
                }
                try {
                    Socket s = dialer.ask(at, request, null);
                    synchronized (state) {
                        socket = s;
                        generation++;
                        heard = now();
                        asked = 0;
                        resumes++;
                        attempting = false;
                        if (ended) Dialer.close(s);
                    }
                    dialer.tell(Dialer.Event.BACK, null);
                    return;
                } catch (GatewayException e) {
                    if (e.status == 401 || e.status == 410 || now() - since >= dialer.hold) {
                        end(e);
                        throw e;
                    }
                    dialer.tell(Dialer.Event.FAILED, e);
                }
                at = (at + 1) % dialer.gateways.length;
                if (++failed % dialer.gateways.length == 0) {
                    try {
                        Thread.sleep(pause + new Random().nextInt(pause));
                    } catch (InterruptedException e) {
                        Thread.currentThread().interrupt();
                        throw new java.io.InterruptedIOException();
                    }
                    pause = Math.min(2 * pause, 1000);
                }
            }
        } finally {
            if (ours) { // by an interrupt, too
                synchronized (state) {
                    attempting = false;
                }
            }
            flushing.unlock();
            recovering.unlock();
        }
    }
}
