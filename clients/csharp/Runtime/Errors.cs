using System;

namespace Gateway.Client
{
    /// <summary>What the player can do.</summary>
    public enum Advice
    {
        /// <summary>A bad network: connect again.</summary>
        Reconnect,
        /// <summary>Get a new line from the login server.</summary>
        NewLine,
        /// <summary>The same, or wait.</summary>
        NewLineOrLater,
        /// <summary>The session is gone: log in again.</summary>
        StartAnew,
    }

    /// <summary>Why there is no tunnel.</summary>
    public class GatewayException : Exception
    {
        /// <summary>What the gateway answered; 0 is no answer.</summary>
        public int Status { get; }
        public Advice Advice { get; }

        protected GatewayException(int status, Advice advice, string message, Exception inner = null) : base(message, inner)
        {
            Status = status;
            Advice = advice;
        }

        internal static GatewayException Of(string status)
        {
            switch (status)
            {
                case "400": return new BadRequestException();
                case "401": return new UnauthorizedException();
                case "410": return new GoneException();
                case "502": return new BadGatewayException();
                case "504": return new GatewayTimeoutException();
                default: return new NoAnswerException("the answer is no status: is this the gateway's address?");
            }
        }
    }

    public sealed class NoAnswerException : GatewayException
    {
        public NoAnswerException(string message = "the gateway gave no answer: connect again", Exception inner = null)
            : base(0, Advice.Reconnect, message, inner) { }
    }
    public sealed class BadRequestException : GatewayException
    {
        public BadRequestException() : base(400, Advice.Reconnect, "the gateway could not read the line (400): connect again") { }
    }
    public sealed class UnauthorizedException : GatewayException
    {
        public UnauthorizedException() : base(401, Advice.NewLine, "the line does not open (401): get a new line") { }
    }
    public sealed class GoneException : GatewayException
    {
        public GoneException(string message = "the session is gone (410): start anew") : base(410, Advice.StartAnew, message) { }
    }
    public sealed class BadGatewayException : GatewayException
    {
        public BadGatewayException()
            : base(502, Advice.NewLineOrLater, "the game server cannot be connected (502): get a new line, or try later") { }
    }
    public sealed class GatewayTimeoutException : GatewayException
    {
        public GatewayTimeoutException()
            : base(504, Advice.NewLineOrLater, "connecting the game server took too long (504): get a new line, or try later") { }
    }
}
